"""Which blob store the settings name."""

from __future__ import annotations

from jobs.blobs import Blobs
from jobs.file_blobs import FileBlobs
from jobs.settings import Settings


def open_blobs(settings: Settings) -> Blobs:
    """Return the blob store that the settings name.

    Raises:
        BlobsUnavailable: the data folder cannot be written.
    """
    if settings.blobs == "s3":
        # boto3 is slow to import, and not needed for files
        from jobs.s3_blobs import S3Blobs

        return S3Blobs.from_settings(settings)
    return FileBlobs.from_settings(settings)
