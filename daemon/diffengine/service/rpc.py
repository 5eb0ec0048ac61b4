# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON-RPC 2.0, one message per line: what a request says, and how answers look. No input and output here."""

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

MOST_REQUEST_BYTES = 16 * 1024
MOST_ID_CHARACTERS = 128


class Code(IntEnum):
    """Those of JSON-RPC, and from -32000 down ours."""

    PARSE = -32700
    INVALID_REQUEST = -32600
    UNKNOWN_METHOD = -32601
    INVALID_PARAMETERS = -32602
    INTERNAL = -32603
    NOT_PERMITTED = -32001
    REFUSED = -32002
    TOO_MANY = -32003
    TOO_LONG = -32004


Id = str | int | None


class RpcError(Exception):
    """To be told to who asked."""

    def __init__(self, code: Code, message: str, id_: Id = None, data: dict[str, Any] | None = None) -> None:
        """data: numbers that the message has in words."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id_
        self.data = data


@dataclass(frozen=True)
class Request:
    """parameters: not checked yet. answered: whether it has an id, so wants an answer."""

    id: Id
    method: str
    untrusted_parameters: dict[str, Any]
    answered: bool


def parse_request(untrusted_line: bytes) -> Request:
    """Raises RpcError. Numbers that JSON does not know (NaN) are refused, and so are batches."""
    try:
        untrusted = json.loads(untrusted_line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RpcError(Code.PARSE, "not JSON") from error
    if not isinstance(untrusted, dict):
        raise RpcError(Code.INVALID_REQUEST, "a request is one JSON object; batches are not taken")
    id_ = _id(untrusted)
    if untrusted.get("jsonrpc") != "2.0":
        raise RpcError(Code.INVALID_REQUEST, 'jsonrpc: must be "2.0"', id_)
    method, parameters = untrusted.get("method"), untrusted.get("params", {})
    if not isinstance(method, str):
        raise RpcError(Code.INVALID_REQUEST, "method: must be a text", id_)
    if not isinstance(parameters, dict):
        raise RpcError(Code.INVALID_PARAMETERS, "params: must be an object; names, not positions", id_)
    if unknown := untrusted.keys() - {"jsonrpc", "id", "method", "params"}:
        raise RpcError(Code.INVALID_REQUEST, f"{min(unknown)[:60]!r}: no such member", id_)
    return Request(id_, method, parameters, "id" in untrusted)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _id(untrusted: dict[str, Any]) -> Id:
    id_ = untrusted.get("id")
    whole = isinstance(id_, int) and not isinstance(id_, bool) and abs(id_) < 1 << 63
    text = isinstance(id_, str) and len(id_) <= MOST_ID_CHARACTERS
    if id_ is None or whole or text:
        return id_
    raise RpcError(Code.INVALID_REQUEST, f"id: must be null, a whole number, or up to {MOST_ID_CHARACTERS} characters")


def result_line(id_: Id, result: Any) -> bytes:
    return _line({"jsonrpc": "2.0", "id": id_, "result": result})


def error_line(error: RpcError) -> bytes:
    told: dict[str, Any] = {"code": int(error.code), "message": error.message}
    if error.data is not None:
        told["data"] = error.data
    return _line({"jsonrpc": "2.0", "id": error.id, "error": told})


def event_line(event: dict[str, Any]) -> bytes:
    return _line({"jsonrpc": "2.0", "method": "event", "params": event})


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"
