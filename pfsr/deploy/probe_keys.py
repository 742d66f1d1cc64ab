"""Whether the SuperLink admits a node's key: asked over the Fleet API, without going online.

A heartbeat interval of zero is refused, but only after the key was looked up: the two refusals
tell a registered key from an unknown one. This uses Flower's own stub and signature, which are
private to Flower: the one file to look at when its version changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.grpc import create_channel
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from pfsr.deploy.findings import Finding

CALL_SECONDS = 10.0
PROXY_VARIABLES = ("https_proxy", "http_proxy", "grpc_proxy")


def key_finding(
    address: str, root_certificates: Path | None, key_path: Path | None, *, insecure: bool
) -> Finding:
    """Whether the SuperLink at ``address`` admits a node with this key, None for a node without."""
    try:
        private_key = (
            ec.generate_private_key(ec.SECP384R1()) if key_path is None else _load(key_path)
        )
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        fix = "pfsr deploy key PATH makes one; give the private half, not the .pub"
        return Finding("missing", "key", f"{key_path} is no private key of a node ({error})", fix)
    ask_superlink = _without_key if key_path is None else _with_key
    channel = create_channel(
        address,
        insecure,
        root_certificates.read_bytes() if root_certificates and not insecure else None,
        interceptors=[NodeAuthClientInterceptor(private_key, private_key.public_key())],
    )
    try:
        return ask_superlink(FleetStub(channel), public_key_to_bytes(private_key.public_key()))
    finally:
        channel.close()


def _load(key_path: Path) -> ec.EllipticCurvePrivateKey:
    private_key = load_ssh_private_key(key_path.read_bytes(), None)
    if not isinstance(private_key, ec.EllipticCurvePrivateKey):
        raise ValueError("not an ECDSA key")
    return private_key


def _with_key(stub: FleetStub, public_key: bytes) -> Finding:
    request = ActivateNodeRequest(public_key=public_key, heartbeat_interval=0)
    call_refusal = _refusal(stub.ActivateNode, request)
    if call_refusal is None:  # not in any version that is known
        return Finding("ok", "key", "registered, and now online for a moment")
    error_code, error_details = call_refusal
    if error_code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return Finding("ok", "key", "registered: this node would be admitted")
    if error_code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        fix = "where the control port is reached: pfsr deploy register KEY.pub"
        return Finding("missing", "key", "this key is not registered at the SuperLink", fix)
    return _other_refusal(error_code, error_details)


def _without_key(stub: FleetStub, public_key: bytes) -> Finding:
    node_ids: list[int] = []

    def register(request: RegisterNodeFleetRequest, **options: Any) -> None:
        node_ids.append(stub.RegisterNode(request, **options).node_id)

    call_refusal = _refusal(register, RegisterNodeFleetRequest(public_key=public_key))
    if call_refusal is None:
        unregister_error = _refusal(
            stub.UnregisterNode, UnregisterNodeFleetRequest(node_id=node_ids[0])
        )
        finding_text = "none given and none needed: whoever reaches this port can join"
        fix = "for more than a test: start the SuperLink with pfsr deploy superlink"
        if unregister_error is not None:
            finding_text += f" (the node {node_ids[0]} of this question is still registered)"
        return Finding("note", "key", finding_text, fix)
    error_code, error_details = call_refusal
    if error_code == ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED:
        fix = "pfsr deploy key PATH, register PATH.pub at the server, give --key PATH"
        return Finding("missing", "key", "no key, and the server admits registered nodes only", fix)
    return _other_refusal(error_code, error_details)


def _refusal(
    rpc_call: Callable[..., Any], request: Any
) -> tuple[int | grpc.StatusCode, str] | None:
    """Flower's error code, or gRPC's where there is none, with the text; None when it worked."""
    version_metadata = RuntimeVersionMetadata.from_local_component("SuperNode")
    try:
        rpc_call(
            request, timeout=CALL_SECONDS, metadata=version_metadata.append_to_grpc_metadata(())
        )
    except grpc.RpcError as error:
        error_details = str(error.details())
        call_refusal = FlowerError.from_json(error_details)
        if call_refusal is None:
            return error.code(), error_details
        return call_refusal.code, call_refusal.message
    return None


def _other_refusal(error_code: int | grpc.StatusCode, error_details: str) -> Finding:
    if error_details == "Invalid timestamp":
        fix = "set the clock, here and on the server, by the network"
        return Finding("missing", "clock", "the clocks of node and server differ too much", fix)
    if error_code == grpc.StatusCode.UNIMPLEMENTED:
        fix = "give the address and port of the SuperLink: 9092"
        return Finding("missing", "key", "a gRPC server, but no SuperLink", fix)
    if error_code == ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE:
        fix = "install the same flwr 1.39 on both sides"
        return Finding(
            "missing", "version", f"the SuperLink refuses this version: {error_details}", fix
        )
    if error_code == grpc.StatusCode.UNAVAILABLE and any(
        variable_name in os.environ for variable_name in PROXY_VARIABLES
    ):
        fix = "gRPC takes the proxy in https_proxy, http_proxy or grpc_proxy: name the SuperLink's "
        fix += "host in no_proxy"
        return Finding(
            "missing", "proxy", f"the way is free, but not for gRPC: {error_details}", fix
        )
    fix = "look into the SuperLink's log"
    return Finding("missing", "key", f"the SuperLink answers {error_code}: {error_details}", fix)
