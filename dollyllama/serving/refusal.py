"""What a server says no with: an HTTP status and OpenAI's error object."""

from __future__ import annotations

from typing import Any

#: OpenAI's word for each kind of error, by status.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refusal(Exception):  # noqa: N818 - it is an answer
    """A request that is not answered.

    status: of HTTP. code: the rule in one word, for programs. param: the field that it is about.
    retry_seconds: when it may be worth another try, None when it is not.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_seconds = retry_seconds

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        headers = {} if self.retry_seconds is None else {"Retry-After": str(self.retry_seconds)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
