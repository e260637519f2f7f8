"""Which addresses are given out: free ones, clear of what the host uses."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxlib.engine import pool
from sandboxlib.errors import NetworkError

ROUTES = st.lists(
    st.builds(
        lambda number, prefix: ip_network((number, prefix), strict=False),
        st.integers(0, (1 << 32) - 1),
        st.integers(8, 32),
    ),
    max_size=20,
)


@given(ROUTES)
def test_a_free_range_overlaps_no_route(routes: list[pool.Range]) -> None:
    found = ip_network(pool.free_ipv4(routes))
    assert found.prefixlen == pool.PREFIX
    assert found.is_private
    assert [route for route in routes if found.overlaps(route)] == []


def test_where_routes_cover_all_pools_it_says_so() -> None:
    with pytest.raises(NetworkError, match=r"no range.*10\.64\.0\.0/10.*subnet="):
        pool.free_ipv4(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))


def test_ipv6_ranges_are_unique_local_and_never_the_same() -> None:
    found = {pool.free_ipv6([ip_network("fd00::/9")]) for _ in range(20)}
    assert len(found) == 20
    assert all(ip_network(item).subnet_of(ip_network("fd80::/9")) for item in found)  # type: ignore[arg-type]


def test_an_address_is_given_out_again_as_late_as_can_be() -> None:
    last, found = 0, []
    for _ in range(12):
        address, last = pool.free_address("n", "10.0.0.0/29", ["10.0.0.1"], last)
        found.append(address)
    assert found[:5] == [f"10.0.0.{number}" for number in range(2, 7)]
    assert found[5:10] == found[:5]


@pytest.mark.parametrize("subnet, count", [("10.0.0.0/30", 1), ("10.0.0.0/29", 5), ("10.0.0.0/24", 253)])
def test_all_of_a_range_are_given_out_and_then_no_more(subnet: str, count: int) -> None:
    taken, last = [pool.first_address(subnet)], 0
    for _ in range(count):
        address, last = pool.free_address("network 'n'", subnet, taken, last)
        assert ip_address(address) in ip_network(subnet)
        assert address not in taken
        taken.append(address)
    with pytest.raises(NetworkError, match=f"network 'n' has no free address in {subnet}"):
        pool.free_address("network 'n'", subnet, taken, last)


@pytest.mark.parametrize("wanted", ["10.0.0.0", "10.0.0.255", "10.0.1.1", "10.0.0.7", "fd00::1"])
def test_an_address_that_cannot_be_had_is_refused(wanted: str) -> None:
    with pytest.raises(NetworkError, match=wanted):
        pool.check_address("network 'n'", wanted, "10.0.0.0/24", {"10.0.0.7"})


@given(st.integers(1, (1 << 32) - 2), st.integers(1, (1 << 32) - 2))
def test_a_mac_address_belongs_to_one_address(first: int, second: int) -> None:
    one, other = (pool.mac_of(str(ip_address(number))) for number in (first, second))
    assert (one == other) == (first == second)
    # Of one interface, and locally administered.
    assert int(one[:2], 16) & 3 == 2
