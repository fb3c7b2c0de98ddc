"""Who gets in: API keys and TLS."""

import datetime
import ipaddress

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_bridge.client import connect
from cloud_bridge.server.auth import ApiKeys
from cloud_bridge.server.errors import RefusalError, ServeError
from cloud_bridge.server.serve import ServerOptions, serving
from edge_runtime.context import PublicInstruction
from edge_runtime.errors import CloudError, CloudRefusedError, CloudUnavailableError, RequestError
from edge_runtime.privacy.gate import Gate, Policy
from edge_runtime.privacy.ledger import Ledger
from tests.support.raw_stream import RawStream, wait_until

INSTRUCTION = PublicInstruction("Write a letter.")


def new_gate() -> Gate:
    return Gate(Policy.OPEN, Ledger())


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("# who may come in\n\nphone: key-of-the-phone\nkey-without-a-name\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def locked(engine, keys_file):
    with serving(engine, ServerOptions(api_keys=keys_file)) as server:
        yield server


@pytest.mark.parametrize("key", ["key-of-the-phone", "key-without-a-name"])
def test_each_key_of_the_file_gets_in(locked, key):
    with connect(locked.address, api_key=key) as client:
        assert client.info(new_gate().info()).model == "tiny-cloud"


@pytest.mark.parametrize(
    ("key", "cause"),
    [
        (None, "no API key was sent"),
        ("key-of-the-phon", "not known"),
        ("key-of-the-phone2", "not known"),
        ("phone", "not known"),
        ("phone:key-of-the-phone", "not known"),
        ("#", "not known"),
    ],
)
def test_every_method_refuses_any_other_key(locked, key, cause):
    gate = new_gate()
    with connect(locked.address, api_key=key) as client:
        calls = [
            lambda: client.info(gate.info()),
            lambda: list(client.sketch(gate.sketch(INSTRUCTION))),
            lambda: list(client.answer(gate.answer(INSTRUCTION, max_new_tokens=1, temperature=0.0, top_p=1.0, seed=0))),
        ]
        for call in calls:
            with pytest.raises(CloudRefusedError, match=cause):
                call()


@pytest.mark.parametrize("key", [None, "key-of-the-phon"])
def test_a_stream_without_the_right_key_gets_not_one_frame_nor_somebody_elses_session(locked, engine, key):
    with RawStream(locked.address, key="key-of-the-phone").open(engine) as mine:
        mine.verify(0, [1], [1])
        for resume in ("", mine.opened.session_id):
            with RawStream(locked.address, key=key).open(engine, resume=resume) as thief:
                thief.ask(0, [], [0])
                with pytest.raises(grpc.RpcError) as refused:
                    next(thief.call)
                assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        # A valid key, but another one, gets a session of its own.
        with RawStream(locked.address, key="key-without-a-name").open(
            engine, resume=mine.opened.session_id
        ) as neighbour:
            assert not neighbour.await_opened().resumed
            assert neighbour.opened.session_id != mine.opened.session_id
        assert mine.verify(1, [2], [2]).rows
        mine.vanish()
    wait_until(lambda: locked.sessions.parked == 1)
    with RawStream(locked.address, key="key-of-the-phone").open(engine, resume=mine.opened.session_id) as back:
        assert back.await_opened().resumed


def test_quotas_count_by_key(engine, keys_file):
    with (
        serving(engine, ServerOptions(api_keys=keys_file, sessions_per_key=1, tokens_per_minute=100)) as server,
        RawStream(server.address, key="key-of-the-phone").open(engine) as first,
    ):
        first.await_opened()
        with RawStream(server.address, key="key-of-the-phone").open(engine) as second:
            reason, after = second.refusal()
            assert reason == "quota" and after is not None and after > 0
        with RawStream(server.address, key="key-without-a-name").open(engine) as other:
            assert other.verify(0, [], [0]).rows
        with connect(server.address, api_key="key-of-the-phone") as client:
            first.half_close()
            wait_until(lambda: server.sessions.active == 0)
            gate = new_gate()
            list(client.answer(gate.answer(INSTRUCTION, max_new_tokens=90, temperature=0.0, top_p=1.0, seed=0)))
            with pytest.raises(CloudError) as refused:
                list(client.sketch(gate.sketch(INSTRUCTION)))
            assert refused.value.transient


def test_probes_need_no_key_and_learn_only_whether_the_server_serves(locked):
    with grpc.insecure_channel(locked.address) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic key-of-the-phone", "key-of-the-phone"])
def test_only_a_bearer_header_counts(keys_file, header):
    with pytest.raises(RefusalError, match="no API key"):
        ApiKeys.read(keys_file).check(header)


def test_a_key_is_known_by_its_name(keys_file):
    keys = ApiKeys.read(keys_file)
    assert keys.check("Bearer key-of-the-phone") == "phone"
    assert keys.check("bearer key-without-a-name") == "line 4"
    assert "key-of-the-phone" not in repr(keys) and "key-of-the-phone" not in str(keys.digests)


@pytest.mark.parametrize(
    ("content", "cause"),
    [("# nothing\n", "holds no API key"), ("a:\n", "line 1"), ("a:x\na:y\n", "line 2"), ("x\nzwei wörter\n", "line 2")],
)
def test_a_keys_file_of_the_wrong_form_is_refused(tmp_path, content, cause):
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ServeError, match=cause):
        ApiKeys.read(path)


def test_a_missing_keys_file_is_refused(tmp_path):
    with pytest.raises(ServeError, match="No such file"):
        ApiKeys.read(tmp_path / "keys")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost: (certificate file, key file)."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(directory):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


@pytest.fixture(scope="module")
def encrypted(engine, certificate, keys_file):
    cert, key = certificate
    with serving(engine, ServerOptions(tls_cert=cert, tls_key=key, api_keys=keys_file)) as server:
        yield server


def test_tls_works_with_the_right_authority(encrypted, certificate):
    roots = certificate[0].read_bytes()
    with connect(encrypted.address, api_key="key-of-the-phone", tls_root_certificates=roots) as client:
        assert client.info(new_gate().info()).model == "tiny-cloud"


def test_a_certificate_of_an_unknown_authority_is_refused(encrypted, tmp_path):
    other = make_certificate(tmp_path)[0].read_bytes()
    for roots in (other, None):
        with (
            connect(encrypted.address, api_key="key-of-the-phone", tls=True, tls_root_certificates=roots) as client,
            pytest.raises(CloudUnavailableError, match="certificate"),
        ):
            client.info(new_gate().info())


def test_a_certificate_for_another_name_is_refused(encrypted, certificate):
    roots = certificate[0].read_bytes()
    with (
        connect(encrypted.address, tls_root_certificates=roots, tls_server_name="elsewhere.example") as client,
        pytest.raises(CloudUnavailableError),
    ):
        client.info(new_gate().info())


def test_plain_text_does_not_get_into_a_tls_server_nor_tls_into_a_plain_one(encrypted, server, certificate):
    with connect(encrypted.address, api_key="key-of-the-phone") as client, pytest.raises(CloudUnavailableError):
        client.info(new_gate().info())
    with (
        connect(server.address, tls_root_certificates=certificate[0].read_bytes()) as client,
        pytest.raises(CloudUnavailableError, match="both sides use TLS"),
    ):
        client.info(new_gate().info())


def test_certificates_that_are_not_pem_are_refused_at_once():
    with pytest.raises(RequestError, match="not PEM"):
        connect("127.0.0.1:1", tls_root_certificates=b"garbage")


def test_a_certificate_without_its_own_key_is_refused(engine, certificate, tmp_path):
    cert, key = certificate
    other_key = make_certificate(tmp_path)[1]
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    for options, cause in [
        (ServerOptions(tls_cert=cert), "both --tls-cert and --tls-key"),
        (ServerOptions(tls_cert=cert, tls_key=other_key), "can't be used"),
        (ServerOptions(tls_cert=empty, tls_key=key), "can't be used"),
        (ServerOptions(tls_cert=cert, tls_key=tmp_path / "none"), "No such file"),
    ]:
        with pytest.raises(ServeError, match=cause), serving(engine, options):
            pass


def test_a_port_in_use_is_refused(engine, server):
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(ServeError, match="in use"), serving(engine, ServerOptions(port=port)):
        pass
