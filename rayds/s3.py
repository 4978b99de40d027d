"""S3 and what speaks like it, through s3fs: one place for retries, listings without caches, copies made by the server.

Endpoint, region and credentials are found as botocore finds them (AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_CONFIG_FILE, the machine's role), and AWS_REGION; FSSPEC_S3_*
sets any argument of s3fs. Import it where S3 is used.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import fsspec
from fsspec.asyn import sync, sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from rayds.errors import StorageError
from rayds.multipart import MIN_PART, Part, Slice, plan_parts
from rayds.remote import Remote, explain, reason, tell_retry, transient, waits

MAX_SIMPLE_COPY = 512 << 20  # larger objects are copied in parts, side by side
HELD_BYTES = 256 << 20  # what parts that are brought together may take in memory
_PAGE = 1000  # names in one answer, and in one request to delete
_LARGE_FOLDERS = 20  # so few in a page of names: each is worth a listing of its own
_CONNECTIONS = 64
_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_REGION",
    "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
)  # fmt: skip

_TRANSIENT_CODES = frozenset((
    "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "RequestTimeoutException", "Throttling",
    "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestLimitExceeded", "TooManyRequestsException",
    "BandwidthLimitExceeded", "PriorRequestNotComplete", "XAmzContentSHA256Mismatch", "IncompleteBody", "OperationAborted",
))  # fmt: skip
_NO_KEY = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, where this runs (on a cluster: on its nodes)"
_WRONG_KEY = "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or the profile AWS_PROFILE)"
_REGION = "Set AWS_REGION to the region of the bucket"
_REMEDIES = {
    "NoCredentialsError": _NO_KEY,
    "PartialCredentialsError": _NO_KEY,
    "ProfileNotFound": "Check AWS_PROFILE",
    "InvalidAccessKeyId": _WRONG_KEY,
    "SignatureDoesNotMatch": _WRONG_KEY,
    "InvalidToken": _WRONG_KEY,
    "ExpiredToken": "The session has ended: get new credentials",
    "TokenRefreshRequired": "The session has ended: get new credentials",
    "AccessDenied": "Check that the credentials are right, and that they permit this",
    "403": "Check that the credentials are right, and that they permit this",
    "NoSuchBucket": "Check its name, or make the bucket first",
    "InvalidBucketName": "Check the name of the bucket",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "301": _REGION,
    "RequestTimeTooSkewed": "Set the clock of this machine",
    "SSLError": "Check AWS_ENDPOINT_URL, and AWS_CA_BUNDLE for a certificate of your own",
    "EndpointConnectionError": "Check AWS_ENDPOINT_URL, and that the server runs",
}


def _code(error: BaseException) -> tuple[str, int]:
    """(code, HTTP status) of an answer of the server; the class of another error, 0."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, Mapping):
        return type(error).__name__, 0
    told = answer.get("Error", {}).get("Code")
    return str(told), int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def _message(error: BaseException) -> str:
    """What the server says, without botocore's words around it."""
    answer = getattr(error, "response", None)
    if not isinstance(answer, Mapping):
        return reason(error)
    code, status = _code(error)
    text = str(answer.get("Error", {}).get("Message") or "the request was refused")
    return f"{text.rstrip('.')} ({code if not code.isdigit() else f'HTTP {status or code}'})"


def _again(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    code, status = _code(error)
    busy = status in (429, 500, 502, 503, 504) or (code.isdigit() and int(code) in (429, 500, 502, 503, 504))
    return busy or code in _TRANSIENT_CODES or transient(error)


def _raise(error: Exception, url: str) -> NoReturn:
    """Raise what the callers in s3fs expect of a missing object, and a StorageError of all else that is known."""
    code, status = _code(error)
    if code in ("NoSuchKey", "NoSuchUpload", "404", "InvalidRange", "416", "NotImplemented", "501"):
        raise translate_boto_error(error) from error
    if code == "NoSuchBucket":
        raise StorageError(f"{url}: there is no such bucket. {_REMEDIES[code]}") from error
    told = _message(error)
    if remedy := _REMEDIES.get(code) or _REMEDIES.get(str(status)):
        raise StorageError(f"{url}: {told.rstrip('.')}. {remedy}") from error
    if _again(error):
        remedy = "S3 did not answer as it should, several times: check that it is reachable, and run again"
        raise StorageError(f"{url}: {told.rstrip('.')}. {remedy}") from error
    if type(error).__module__.startswith("botocore"):
        raise StorageError(f"{url}: {told}") from error
    raise error


class S3(S3FileSystem):  # type: ignore[misc]  # s3fs has no types
    """s3fs with the retries of rayds in the place of those of s3fs and botocore, which would multiply."""

    def _prepare_config_kwargs(self) -> dict[str, Any]:
        ours = {
            "connect_timeout": 10,
            "read_timeout": 60,  # a server that copies gigabytes is silent for long
            "max_pool_connections": _CONNECTIONS,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        return {**ours, **self.config_kwargs}

    async def _call_s3(self, method: str, *akwarglist: Any, **kwargs: Any) -> Any:
        url = f"s3://{kwargs.get('Bucket', '')}/{kwargs.get('Key') or kwargs.get('Prefix') or ''}".rstrip("/")

        async def call() -> Any:
            await self.set_session()
            client = await self.get_s3(kwargs.get("Bucket"))
            fn = getattr(client, method)
            return await fn(**self._get_s3_method_kwargs(fn, *akwarglist, **kwargs))

        return await self._tried(call, url)

    @staticmethod
    async def _tried(call: Callable[[], Any], url: str) -> Any:
        pauses = waits()
        while True:
            try:
                return await call()
            except Exception as e:
                wait = next(pauses, None) if _again(e) else None
                if wait is None:
                    _raise(e, url)
                tell_retry(url, _message(e), wait)
                await asyncio.sleep(wait)

    call_s3 = sync_wrapper(_call_s3)

    async def _cat_file(
        self, path: str, version_id: Any = None, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """One request: s3fs asks for the size first."""
        bucket, key, version = self.split_path(path)
        more = {"VersionId": version_id or version} if version_id or version else {}
        if start is not None or end is not None:
            more["Range"] = await self._process_limits(path, start, end)

        async def read() -> bytes:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **more)
            async with answer["Body"] as body:
                data: bytes = await body.read()
            return data

        try:
            data: bytes = await self._tried(read, f"s3://{path}")
        except OSError as e:
            if _code(e.__cause__ or e)[0] in ("InvalidRange", "416"):
                return b""  # the file ends before
            raise
        return data


class S3Remote(Remote):
    """Object storage: folders are prefixes of keys; paths are bucket/key."""

    fs: S3

    def url(self, path: str) -> str:
        return f"s3://{path}"

    def tried(self, path: str, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Just the call: S3._call_s3 tries again. Errors that s3fs makes of the answers are named."""
        try:
            return fn(*args, **kwargs)
        except FileNotFoundError as e:
            raise FileNotFoundError(2, "no such object", self.url(path)) from e
        except StorageError:
            raise
        except OSError as e:
            raise explain(e, self.url(path)) from e

    def call(self, method: str, path: str, **kwargs: Any) -> dict[str, Any]:
        """One request for an object (or a bucket), in the words of boto3."""
        bucket, key, _ = self.fs.split_path(path)
        named = {"Bucket": bucket, **({"Key": key} if key else {})}
        answer: dict[str, Any] = self.tried(
            path, sync, self.fs.loop, self.fs._call_s3, method, **named, **kwargs
        )
        return answer

    # reading

    def kind(self, path: str) -> str | None:
        if self.fs.split_path(path)[1]:
            try:
                self.call("head_object", path)
                return "file"
            except FileNotFoundError:
                pass
        return None if self.empty(path) else "directory"

    def size(self, path: str) -> int:
        return int(self.call("head_object", path)["ContentLength"])

    def stamp(self, path: str) -> Any:
        found = self.call("head_object", path)
        return found["ETag"], found["ContentLength"]

    def _pages(self, path: str, delimiter: str = "", **kwargs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
        """(prefix, page) of the listing of a folder."""
        bucket, key, _ = self.fs.split_path(path)
        prefix = key.rstrip("/") + "/" if key.rstrip("/") else ""
        kwargs.update({"Prefix": prefix, **({"Delimiter": delimiter} if delimiter else {})})
        while True:
            page = self.call("list_objects_v2", bucket, **kwargs)
            yield prefix, page
            if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                return
            kwargs["ContinuationToken"] = page["NextContinuationToken"]

    def entries(self, path: str) -> tuple[list[str], list[str]]:
        if not path.strip("/"):
            return [b["Name"] for b in self.call("list_buckets", "").get("Buckets", [])], []
        dirs: list[str] = []
        files: list[str] = []
        for prefix, page in self._pages(path, "/"):
            dirs += [p["Prefix"][len(prefix) : -1] for p in page.get("CommonPrefixes", ())]
            files += [o["Key"][len(prefix) :] for o in page.get("Contents", ())]
        return [d for d in dirs if d], [f for f in files if f and not f.endswith("/")]

    def find(self, path: str, side_by_side: bool = True) -> dict[str, int]:
        """In one go for up to a thousand objects; a longer listing is made of those of the sub-folders, side by side.

        That is so where the sub-folders are large: of very many small ones it takes more requests than the one listing.
        """
        pages = self._pages(path)
        prefix, first = next(pages)
        found = self._sizes(prefix, [first])
        if not first.get("IsTruncated"):
            return found
        if side_by_side and len({name.partition("/")[0] for name in found if "/" in name}) <= _LARGE_FOLDERS:
            dirs, _ = self.entries(path)
            if 0 < len(dirs) <= _PAGE:
                found = self._sizes(prefix, (page for _, page in self._pages(path, "/")))
                alone = len(dirs) == 1  # else the threads are busy with these
                below = self.side_by_side(lambda d: self.find(f"{path.rstrip('/')}/{d}", alone), dirs)
                for name, inner in zip(dirs, below, strict=True):
                    found.update({f"{name}/{n}": size for n, size in inner.items()})
                return found
        return found | self._sizes(prefix, (page for _, page in pages))

    @staticmethod
    def _sizes(prefix: str, pages: Any) -> dict[str, int]:
        objects = (o for page in pages for o in page.get("Contents", ()))
        return {o["Key"][len(prefix) :]: int(o["Size"]) for o in objects if not o["Key"].endswith("/")}

    def empty(self, path: str) -> bool:
        _, page = next(self._pages(path, MaxKeys=1))
        return not page.get("Contents")

    # writing

    def makedirs(self, path: str) -> None:
        """Nothing: there are no folders. (s3fs would make a bucket.)"""

    def write_many(self, files: Mapping[str, Any]) -> None:
        self.side_by_side(lambda path: self.write(path, files[path]), list(files))

    def copy(self, source: str, target: str, size: int | None = None) -> None:
        if size is None or size <= MAX_SIMPLE_COPY:
            bucket, key, _ = self.fs.split_path(source)
            try:
                self.call("copy_object", target, CopySource={"Bucket": bucket, "Key": key})
                return
            except StorageError:  # too large for that, it may be
                size = self.size(source) if size is None else size
                if size <= MAX_SIMPLE_COPY:
                    raise
        if size:
            self._upload(target, plan_parts([(source, size)], max_copy=max(MIN_PART, MAX_SIMPLE_COPY)), size)

    def copy_tree(self, source: str, target: str, files: Mapping[str, int]) -> None:
        large = [n for n, size in files.items() if size > MAX_SIMPLE_COPY]
        for name in large:  # these have threads for their parts
            self.copy(f"{source}/{name}", f"{target}/{name}", files[name])
        super().copy_tree(source, target, {n: s for n, s in files.items() if s <= MAX_SIMPLE_COPY})

    def remove(self, path: str) -> None:
        self.remove_files(path, list(self.find(path)))
        if self.fs.split_path(path)[1]:
            with suppress(FileNotFoundError):
                self.call("delete_object", path)

    def remove_files(self, folder: str, names: Sequence[str]) -> None:
        bucket, key, _ = self.fs.split_path(folder)
        prefix = key.rstrip("/") + "/" if key.rstrip("/") else ""

        def some(start: int) -> None:
            keys = [{"Key": prefix + n} for n in names[start : start + _PAGE]]
            answer = self.call("delete_objects", bucket, Delete={"Objects": keys, "Quiet": True})
            for e in answer.get("Errors", ()):
                raise StorageError(f"s3://{bucket}/{e.get('Key')}: can't be removed ({e.get('Message')})")

        self.side_by_side(some, range(0, len(names), _PAGE))

    def concatenate(self, parts: Sequence[bytes | str], path: str) -> None:
        """By a multipart upload whose large parts the server copies from the files themselves."""
        files = [p for p in parts if isinstance(p, str)]
        sizes = dict(zip(files, self.side_by_side(self.size, files), strict=True))
        pieces = [(p, sizes[p] if isinstance(p, str) else len(p)) for p in parts]
        total = sum(size for _, size in pieces)
        try:
            self._upload(path, plan_parts(pieces), total)
        except StorageError as e:
            if getattr(e.__cause__, "errno", None) != errno.ENOSYS:
                raise
            super().concatenate(parts, path)  # a server that can't copy parts

    def _bytes(self, part: Part) -> bytes:
        return b"".join(
            s.source[s.start : s.end]
            if isinstance(s.source, bytes)
            else self.read_range(s.source, s.start, s.end)
            for s in part.slices
        )

    def _upload(self, path: str, parts: Sequence[Part], total: int) -> None:
        if len(parts) < 2 and total < 2 * MIN_PART:
            self.write(path, self._bytes(parts[0]) if parts else b"")
            return
        upload = self.call("create_multipart_upload", path)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            part = parts[number - 1]
            if part.copy:
                answer = self._copy_part(path, upload, number, part.slices[0])
            else:
                answer = self.call(
                    "upload_part", path, UploadId=upload, PartNumber=number, Body=self._bytes(part)
                )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        try:
            sent = self._sent(send, parts)
            self._complete(path, upload, sent, total)
        except BaseException:
            with suppress(Exception):
                self.call("abort_multipart_upload", path, UploadId=upload)
            raise

    def _sent(self, send: Callable[[int], dict[str, Any]], parts: Sequence[Part]) -> list[dict[str, Any]]:
        """All parts: copies as many at a time as may be, others as many as fit into HELD_BYTES."""
        sent: dict[int, dict[str, Any]] = {}
        copied = [i for i, p in enumerate(parts, 1) if p.copy]
        held = [i for i, p in enumerate(parts, 1) if not p.copy]
        for answer in self.side_by_side(send, copied):
            sent[answer["PartNumber"]] = answer
        largest = max((sum(s.size for s in parts[i - 1].slices) for i in held), default=1)
        at_once = max(1, HELD_BYTES // largest)
        for start in range(0, len(held), at_once):
            for answer in self.side_by_side(send, held[start : start + at_once]):
                sent[answer["PartNumber"]] = answer
        return [sent[i] for i in sorted(sent)]

    def _copy_part(self, path: str, upload: str, number: int, piece: Slice) -> dict[str, Any]:
        bucket, key, _ = self.fs.split_path(piece.source)
        answer = self.call(
            "upload_part_copy",
            path,
            UploadId=upload,
            PartNumber=number,
            CopySource={"Bucket": bucket, "Key": key},
            CopySourceRange=f"bytes={piece.start}-{piece.end - 1}",
        )
        result: dict[str, Any] = answer["CopyPartResult"]
        return result

    def _complete(self, path: str, upload: str, sent: list[dict[str, Any]], total: int) -> None:
        try:
            self.call("complete_multipart_upload", path, UploadId=upload, MultipartUpload={"Parts": sent})
        except FileNotFoundError:
            # The answer to an earlier try was lost, and that one had succeeded.
            if self.size(path) != total:
                raise


_instances: dict[Any, S3] = {}
_left: list[Any] = []
_lock = threading.Lock()


def connect() -> S3Remote:
    """The S3 of the environment as it is now: one client a process, for all threads, and a new one after a fork."""
    configured = fsspec.config.conf.get("s3", {})
    key = (os.getpid(), *(os.environ.get(v) for v in _VARIABLES), repr(configured))
    with _lock:
        if key not in _instances:
            _instances[key] = _make(configured)
        return S3Remote(_instances[key])


def _make(configured: Mapping[str, Any]) -> S3:
    client = dict(configured.get("client_kwargs") or {})
    region = os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION")
    if region:
        client.setdefault("region_name", region)
    return S3(client_kwargs=client, use_listings_cache=False, skip_instance_cache=True)


def _forget() -> None:
    """In a forked process: connections, loop and lock are the parent's.

    They are kept: closing them here would take the parent's sockets off its event loop, which the two share.
    """
    global _lock
    _left.append(dict(_instances))
    _instances.clear()
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
