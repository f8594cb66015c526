"""What is asked of an encode."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nifcore.config import Settings
from nifcore.errors import UsageError


@dataclass(frozen=True)
class Request:
    """What is asked of an encode: the arguments of :func:`nifcore.encode` without the picture."""

    preset: str | None = None
    effort: int | None = None
    quality: int | None = None
    psnr: float | None = None
    bpp: float | None = None
    max_bytes: int | None = None
    device: str = "auto"
    kernel: str = "auto"
    seed: int = 0
    keep_icc: bool = False

    def with_defaults(self, settings: Settings) -> Request:
        """Fill in what the settings say about what was not asked for.

        Raises:
            UsageError: two targets are given, or a preset and an effort.
        """
        targets = [
            f"--{name.replace('_', '-')}"
            for name in ("quality", "psnr", "bpp", "max_bytes")
            if getattr(self, name) is not None
        ]
        if len(targets) > 1:
            raise UsageError(f"{' and '.join(targets)} exclude each other; give one target")
        if self.preset is not None:
            if self.effort is not None:
                raise UsageError("--preset and --effort exclude each other")
            return self
        filled = replace(self, effort=self.effort or settings.effort)
        return filled if targets else replace(filled, quality=settings.quality)
