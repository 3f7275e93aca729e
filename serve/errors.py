"""The error tree. Status and code sit on the class; the API renders `message`, never `str()` of a remote traceback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Fragment:
    """The part of a prompt that is at fault, in code points: `prompt[start:end] == text`."""

    start: int
    end: int
    text: str


class ZImageError(Exception):
    """Base of every error that a user may see.

    `message` says what is wrong with the value and the limit, `hint` what to do, `param` names the field,
    `retry_after` is whole seconds.
    """

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        hint: str | None = None,
        fragment: Fragment | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.hint = hint
        self.fragment = fragment
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.param, self.hint, self.fragment, self.retry_after)


def _rebuild(
    cls: type[ZImageError],
    message: str,
    param: str | None,
    hint: str | None,
    fragment: Fragment | None,
    retry_after: int | None,
) -> ZImageError:
    return cls(message, param=param, hint=hint, fragment=fragment, retry_after=retry_after)


class InvalidRequest(ZImageError):
    status, code, type = 400, "invalid_value", "invalid_request_error"


class TooLargeForMemory(InvalidRequest):
    """A picture that no replica's memory can take. `largest_px` is the side of the largest square that fits."""

    @classmethod
    def of(cls, width: int, height: int, largest_px: int) -> TooLargeForMemory:
        return cls(
            f"size {width}x{height} does not fit into the GPU's memory",
            param="size",
            hint=f"the largest that fits is {largest_px}x{largest_px}, or as many pixels",
        )


class ControlNetNotFound(InvalidRequest):
    code = "controlnet_not_found"


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class NotFound(ZImageError):
    status, code, type = 404, "not_found", "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ZImageError):
    status, code, type = 405, "method_not_allowed", "invalid_request_error"


class BodyTooLarge(ZImageError):
    status, code, type = 413, "body_too_large", "invalid_request_error"


class BodyTooSlow(ZImageError):
    status, code, type = 408, "body_too_slow", "invalid_request_error"


class RangeNotSatisfiable(ZImageError):
    status, code, type = 416, "range_not_satisfiable", "invalid_request_error"


class IdempotencyKeyReused(ZImageError):
    """The same key was sent before with another body."""

    status, code, type = 422, "idempotency_key_reused", "invalid_request_error"


class Unauthenticated(ZImageError):
    """Nobody whom we know. The same for a missing, a wrong, an expired and a revoked key.

    `challenge` is the value of WWW-Authenticate.
    """

    status, code, type = 401, "unauthenticated", "authentication_error"

    def __init__(self, message: str, *, hint: str | None = None, challenge: str = "Bearer") -> None:
        super().__init__(message, hint=hint)
        self.challenge = challenge


class Forbidden(ZImageError):
    """The caller is known, but the role may not do this."""

    status, code, type = 403, "forbidden", "permission_error"


class SignInExpired(ZImageError):
    """The answer of an OpenID provider to a sign-in that was not begun in this browser, or is too old, or is over."""

    status, code, type = 400, "sign_in_expired", "invalid_request_error"


class SignInRefused(ZImageError):
    """The OpenID provider says no, or the user does there."""

    status, code, type = 403, "sign_in_refused", "permission_error"


class SignInFailed(ZImageError):
    """An OpenID provider's answer that proves nothing."""

    status, code = 502, "sign_in_failed"


class TooManySignIns(ZImageError):
    """Wrong keys or passwords, again and again."""

    status, code, type = 429, "too_many_sign_ins", "rate_limit_error"


class QuotaExceeded(ZImageError):
    status, code, type = 429, "quota_exceeded", "rate_limit_error"


class LinkRefused(ZImageError):
    """A signed link that is missing its signature, was changed, or has expired."""

    status, code, type = 403, "link_refused", "permission_error"


class Unavailable(ZImageError):
    status, code = 503, "unavailable"


class NotReady(Unavailable):
    code = "not_ready"


class QueueFull(Unavailable):
    """No place for anybody, or, where not `for_all`, for this user. It will be so for `holds_s` seconds at least."""

    code = "queue_full"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after: int | None = None,
        for_all: bool = True,
        holds_s: float = 0.0,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after)
        self.for_all = for_all
        self.holds_s = holds_s

    def again(self) -> QueueFull:
        """The same, to be raised for another."""
        return _full_again(self.message, self.hint, self.retry_after, self.for_all, self.holds_s)

    def __reduce__(self) -> tuple[Any, ...]:
        return _full_again, (self.message, self.hint, self.retry_after, self.for_all, self.holds_s)


def _full_again(message: str, hint: str | None, retry_after: int | None, for_all: bool, holds_s: float) -> QueueFull:
    return QueueFull(message, hint=hint, retry_after=retry_after, for_all=for_all, holds_s=holds_s)


class DeadlineInfeasible(Unavailable):
    code = "deadline_infeasible"


class DeadlineExceeded(Unavailable):
    code = "deadline_exceeded"


class StaleWriter(Unavailable):
    """Another Dispatcher has taken over the job store: this one writes no more, and is replaced."""

    code = "stale_writer"


class RequestTimeout(Unavailable):
    code = "request_timeout"


class JobCanceled(Unavailable):
    """The job was cancelled by someone else while a caller waited for its picture."""

    code = "job_canceled"


class OutOfMemory(ZImageError):
    """The device had no memory left for this one request, though it had been measured to fit."""

    code = "out_of_memory"


class NotOffered(ZImageError):
    """A feature that the protocol knows and this service does not have."""

    status, code, type = 501, "not_offered", "invalid_request_error"


class DeviceLost(ZImageError):
    """The device of a replica answers no more: the replica is replaced, and its jobs go back to the queue."""

    code = "device_lost"


class ReplicaLost(ZImageError):
    """A job killed or lost its replica too often to be tried again."""

    code = "replica_lost"


class StoreFull(ZImageError):
    status, code = 507, "store_full"


class StoreUnavailable(Unavailable):
    """The asset store does not answer or takes no writes; the pictures in it are not lost."""

    code = "store_unavailable"


class AssetCorrupted(ZImageError):
    """A stored picture whose bytes are not those that were stored."""

    code = "asset_corrupted"


class ConfigError(ZImageError):
    """Configuration that stops the start: says file, key and fix."""

    code = "config_error"


class InvalidConfig(ConfigError):
    """A hot file that is bad: the message has a line for each problem, with file, line, key and reason."""

    status, code, type = 400, "invalid_config", "invalid_request_error"


class WeightsError(ConfigError):
    """Weights that are missing, truncated or of another architecture: names the file and the fix."""

    code = "weights_error"
