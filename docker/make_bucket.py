"""Makes the bucket of the settings (``NIF_S3_*``) unless it is there already.

Exits with 0 if the bucket is there at the end, else with 1 and the reason.
"""

from __future__ import annotations

import sys

from botocore.exceptions import BotoCoreError, ClientError

from jobs.errors import Invalid
from jobs.s3_blobs import make_client
from jobs.settings import load_settings

OURS_ALREADY = "BucketAlreadyOwnedByYou"


def main() -> str | None:
    """Return what is wrong, or None."""
    try:
        settings = load_settings()
    except Invalid as error:
        return str(error)
    if settings.s3_bucket is None:
        return "NIF_S3_BUCKET is not set"
    client = make_client(settings, settings.s3_endpoint)
    try:
        try:
            client.head_bucket(Bucket=settings.s3_bucket)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
        else:
            return None
        client.create_bucket(Bucket=settings.s3_bucket)
    except ClientError as error:
        # Somebody else made it in the meantime.
        return None if error.response["Error"].get("Code") == OURS_ALREADY else str(error)
    except BotoCoreError as error:
        return str(error)
    finally:
        client.close()
    return None


if __name__ == "__main__":
    sys.exit(main())
