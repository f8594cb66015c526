"""What bounds a request: the settings of the service, and the fixed limits of the API itself."""

from __future__ import annotations

from jobs import Settings, load_settings

__all__ = ["Settings", "load_settings"]

MAX_HEADER_BYTES = 16 * 1024
"""All header lines of a request together."""

MAX_JSON_BYTES = 1024 * 1024
"""A JSON body."""

MAX_FIELD_BYTES = 64 * 1024
"""One form field that is not a file."""

MAX_FIELDS = 64
"""Form fields of one request that are not files."""

BATCH_FACTOR = 4
"""A whole batch may be so many times as large as one picture."""

SPOOL_BYTES = 256 * 1024
"""An upload larger than this waits in a temporary file rather than in memory."""

DECODERS = 2
"""Child processes that decode at the same time."""

DECODE_WAIT_SECONDS = 20.0
"""How long a request waits for its turn to decode."""

DECODE_SECONDS = 60.0
"""Processor seconds, and then some, that one decode may take."""

DECODE_MEMORY_BYTES = 8 * 1024**3
"""Address space of a decoding child; torch alone maps a few GiB without using them."""

MAX_IMAGE_BYTES = 256 * 1024 * 1024
"""Largest picture that a decode may write."""

STREAM_KEY_SECONDS = 5.0
"""A stream whose key is revoked or expired ends within so long."""

STREAM_STALL_SECONDS = 30.0
"""A stream from which nothing is read for so long is cut off."""

KEEP_FREE_SECONDS = 5
"""Retry-After where nothing better is known."""
