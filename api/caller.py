"""Who asks: the owner of a request's API key, and whose jobs that owner may see."""

from __future__ import annotations

from dataclasses import dataclass

from jobs import ApiKey, Scope


@dataclass(frozen=True)
class Caller:
    """A request's API key, known to be good.

    Attributes:
        key: the key's record.
        tenant: whose jobs are made.
        sees: whose jobs are seen: the tenant, or None for everybody's (an administrator).
    """

    key: ApiKey

    @property
    def tenant(self) -> str:
        return self.key.tenant

    @property
    def sees(self) -> str | None:
        return None if Scope.ADMIN in self.key.scopes else self.key.tenant
