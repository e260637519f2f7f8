"""Downloads that break off, come wrong, or come from elsewhere."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sandboxlib.errors import ImageError
from sandboxlib.image import trust
from sandboxlib.image.answers import RegistryError
from sandboxlib.image.store import Store
from sandboxlib.image.transfer import pull

import registries
from registries import Fault, Proxy, Server

pytestmark = [
    pytest.mark.leaks,
    pytest.mark.tool("docker-registry", "skopeo"),
    pytest.mark.usefixtures("hasty"),
]


@pytest.fixture(scope="module")
def image(plain: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A manifest of two layers of three megabytes that is ``app:1``."""
    folder = tmp_path_factory.mktemp("image")
    made = registries.layout(folder, layers=2, size=3_000_000, seed="faults")
    registries.put(folder, f"{plain.name}/app:1")
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def layer(image: dict[str, Any]) -> str:
    return str(image["layers"][1]["digest"])


def whole(store: Store, image: dict[str, Any], name: str) -> bool:
    """Is the image in the store, and named?"""
    kept = store.resolve(name)
    there = all(store.has(one["digest"]) for one in (*image["layers"], image["config"]))
    assert kept is None or there, "a name without its blobs"
    return kept is not None


def ranges(proxy: Proxy, digest: str) -> list[str | None]:
    return [seen.headers.get("Range") for seen in proxy.asked("GET", digest)]


def test_a_download_that_breaks_off_goes_on_where_it_was(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    proxy.faults = [Fault("GET", layer(image), times=2, cut=1_000_000)]
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")
    first, second, third = ranges(proxy, layer(image))
    assert first is None
    for later, least in ((second, 1), (third, 1_000_000)):
        assert later is not None
        assert int(later.removeprefix("bytes=").removesuffix("-")) >= least


def test_what_was_fetched_of_it_is_used_by_the_next_pull(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    proxy.faults = [
        Fault("GET", layer(image), times=1, cut=2_500_000),
        Fault("GET", layer(image), status=403),
    ]
    with pytest.raises(RegistryError, match="403"):
        pull(store, f"{proxy.name}/app:1")
    assert not whole(store, image, f"{proxy.name}/app:1")
    proxy.faults.clear()
    proxy.log.clear()
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")
    (asked,) = ranges(proxy, layer(image))
    assert asked is not None
    assert int(asked.removeprefix("bytes=").removesuffix("-")) >= 2_000_000


def test_a_registry_without_ranges_sends_all_again(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    proxy.faults = [
        Fault("GET", layer(image), times=1, cut=1_500_000),
        Fault("GET", layer(image), drop=("Range",)),
    ]
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")
    assert [seen.status for seen in proxy.asked("GET", layer(image))] == [200, 200]


@pytest.mark.parametrize(
    "said", ["", "bytes 0-9/10", "bytes 5-9/3000320", "bytes */10", "nonsense", "bytes 1500000-3000319/9"]
)
def test_a_part_that_is_not_the_one_asked_for_is_refused(
    proxy: Proxy, image: dict[str, Any], store: Store, said: str
) -> None:
    proxy.faults = [
        Fault("GET", layer(image), times=1, cut=1_500_000),
        Fault("GET", layer(image), status=206, headers={"Content-Range": said}, body=b"x" * 10),
    ]
    with pytest.raises(ImageError, match="asked for bytes"):
        pull(store, f"{proxy.name}/app:1")
    assert not whole(store, image, f"{proxy.name}/app:1")


def test_wrong_bytes_are_never_kept(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    proxy.faults = [Fault("GET", layer(image), flip=True)]
    with pytest.raises(ImageError, match=layer(image)):
        pull(store, f"{proxy.name}/app:1")
    assert not whole(store, image, f"{proxy.name}/app:1")
    assert not store.has(layer(image))
    assert len(proxy.asked("GET", layer(image))) == 1
    # And they spoil nothing for the next pull.
    proxy.faults.clear()
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")


def test_a_beginning_that_was_wrong_is_fetched_anew(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    proxy.faults = [Fault("GET", layer(image), times=1, flip=True, cut=1_500_000)]
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")
    assert len(proxy.asked("GET", layer(image))) == 3


def test_a_config_with_wrong_bytes_is_refused(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    proxy.faults = [Fault("GET", image["config"]["digest"], flip=True)]
    with pytest.raises(ImageError):
        pull(store, f"{proxy.name}/app:1")
    assert not whole(store, image, f"{proxy.name}/app:1")


def test_more_than_was_promised_is_refused(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    proxy.faults = [Fault("GET", layer(image), status=200, body=b"x" * 4_000_000)]
    with pytest.raises(ImageError, match="more than"):
        pull(store, f"{proxy.name}/app:1")
    assert not store.has(layer(image))
    proxy.faults.clear()
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_waited_for(
    proxy: Proxy, image: dict[str, Any], store: Store, status: int
) -> None:
    proxy.faults = [
        Fault("GET", layer(image), times=2, status=status),
        Fault("GET", "/manifests/", times=1, status=status),
        Fault("GET", image["config"]["digest"], times=1, cut=10),
    ]
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")
    assert len(proxy.asked("GET", layer(image))) == 3


def test_retry_after_is_heeded(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    proxy.faults = [Fault("GET", layer(image), times=1, status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    pull(store, f"{proxy.name}/app:1")
    assert time.monotonic() - began >= 1


def test_a_download_that_never_moves_on_is_given_up(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    proxy.faults = [Fault("GET", layer(image), cut=0)]
    with pytest.raises(ImageError, match="broke"):
        pull(store, f"{proxy.name}/app:1")
    assert len(proxy.asked("GET", layer(image))) == 5


def test_one_that_moves_on_a_little_each_time_is_not(
    proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    proxy.faults = [Fault("GET", layer(image), times=8, cut=400_000)]
    pull(store, f"{proxy.name}/app:1")
    assert whole(store, image, f"{proxy.name}/app:1")


def test_a_failing_layer_stops_the_others(proxy: Proxy, image: dict[str, Any], store: Store) -> None:
    stalled = threading.Event()
    proxy.faults = [
        Fault("GET", image["layers"][0]["digest"], stall=stalled),
        Fault("GET", layer(image), status=404),
    ]
    began = time.monotonic()
    with pytest.raises(RegistryError, match="404"):
        pull(store, f"{proxy.name}/app:1")
    assert time.monotonic() - began < 50
    stalled.set()


# --- other hosts ----------------------------------------------------------------------------------------


def test_blobs_may_come_from_another_host(
    plain: Server, proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    with Proxy(plain.port) as other:
        proxy.faults = [Fault("GET", "/blobs/", redirect=f"http://127.0.0.1:{other.port}")]
        other.faults = [Fault("GET", layer(image), times=1, cut=1_500_000)]
        pull(store, f"{proxy.name}/app:1")
        assert whole(store, image, f"{proxy.name}/app:1")
        # After a failure the registry is asked for the way again.
        assert len(ranges(proxy, layer(image))) == 2
        assert ranges(other, layer(image))[1] is not None


def test_a_permission_that_has_run_out_is_asked_for_again(
    plain: Server, proxy: Proxy, image: dict[str, Any], store: Store
) -> None:
    with Proxy(plain.port) as other:
        proxy.faults = [Fault("GET", "/blobs/", redirect=f"http://127.0.0.1:{other.port}")]
        other.faults = [Fault("GET", layer(image), times=1, status=403, body=b"<Error>expired</Error>")]
        pull(store, f"{proxy.name}/app:1")
        assert whole(store, image, f"{proxy.name}/app:1")


def foreign(plain: Server, folder: Path, url: str) -> dict[str, Any]:
    """``foreign:1``, whose second layer the registry does not have."""
    made = registries.layout(folder, seed="foreign")
    kind = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    layers = [made["layers"][0], made["layers"][1] | {"mediaType": kind, "urls": [url]}]
    registries.put(folder, f"{plain.name}/foreign:0")
    plain.blob(layers[1]["digest"]).unlink(missing_ok=True)
    kept = {name: value for name, value in made.items() if name != "digest"}
    return registries.finish(folder, {**kept, "layers": layers}, "1")


def test_a_foreign_layer_is_fetched_from_where_it_is(
    plain: Server, proxy: Proxy, store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "image"
    with Proxy(plain.port) as other:
        made = foreign(plain, folder, f"http://{other.name}/layers/one")
        manifest = (folder / "blobs/sha256" / made["digest"][7:]).read_bytes()
        content = (folder / "blobs/sha256" / layer(made)[7:]).read_bytes()
        proxy.faults = [
            Fault(
                "GET", "/manifests/", status=200, body=manifest, headers={"Content-Type": made["mediaType"]}
            ),
            Fault("GET", layer(made), status=404),
        ]
        other.faults = [Fault("GET", "/layers/one", status=200, body=content)]
        pull(store, f"{proxy.name}/foreign:1")
        assert whole(store, made, f"{proxy.name}/foreign:1")
        other.faults = [Fault("GET", "/layers/one", status=200, body=b"\0" * len(content))]
        with pytest.raises(ImageError):
            pull(Store(str(tmp_path / "other")), f"{proxy.name}/foreign:1")


@pytest.mark.parametrize(
    "host, verdict",
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("[fe80::1]", True),
        ("10.1.2.3", True),
        ("169.254.169.254", True),
        ("0.0.0.0", True),
        ("8.8.8.8", False),
        ("a.example", False),
    ],
)
def test_which_addresses_mean_something_only_here(host: str, verdict: bool) -> None:
    assert trust.is_internal(host) is verdict
