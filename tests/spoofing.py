"""
Ways to send what is not one's own, from inside a sandbox: the text of this file runs there, before a test's.

Each attempt has a name, which stands in its bytes; what is refused inside already is not printed.
"""
import errno, fcntl, json, socket, struct, subprocess
MARK = b"<%s>"
def told(name, act):
    """Do it; what is refused inside has not been sent."""
    try:
        act(MARK % name.encode())
        print(name, flush=True)
    except OSError:
        pass
def raw(text):
    return bytes.fromhex(text.replace(":", ""))
def ip(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
def total(data):
    data += bytes(len(data) % 2)
    found = sum(struct.unpack(f">{len(data) // 2}H", data))
    while found >> 16:
        found = (found & 0xFFFF) + (found >> 16)
    return ~found & 0xFFFF
def packet4(source, target, data, protocol=17, options=b""):
    inner = struct.pack(">HHHH", 81, 81, 8 + len(data), 0) + data if protocol == 17 else data
    words = 5 + len(options) // 4
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(inner), 0, 0, 64, protocol, 0) + ip(source) + ip(target) + options
    return head[:10] + struct.pack(">H", total(head)) + head[12:] + inner
def sum6(source, target, kind, data):
    return total(ip(source) + ip(target) + struct.pack(">IHBB", len(data), 0, 0, kind) + data)
def packet6(source, target, data, kind=17, hops=64, before=b"", first=None):
    if kind == 17:
        data = struct.pack(">HHHH", 81, 81, 8 + len(data), 0) + data
        data = data[:6] + struct.pack(">H", sum6(source, target, 17, data)) + data[8:]
    elif kind == 58:
        data = data[:2] + struct.pack(">H", sum6(source, target, 58, data)) + data[4:]
    first = kind if first is None else first
    return struct.pack(">IHBB", 6 << 28, len(before + data), first, hops) + ip(source) + ip(target) + before + data
def packet(source, target, data):
    return (packet6 if ":" in source else packet4)(source, target, data)
def ether(to, from_, kind, data):
    return raw(to) + raw(from_) + struct.pack(">H", kind) + data
_packets = []
def frame(data):
    if not _packets:
        # One for all: to close such a socket the kernel takes 20 ms.
        _packets.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        _packets[0].bind(("eth0", 0))
    _packets[0].send(data)
def framed(source, target, mac, to):
    kind = 0x86DD if ":" in source else 0x0800
    return lambda mark: frame(ether(to, mac, kind, packet(source, target, mark)))
def freely(source, target, option="free"):
    """By a socket that is bound to an address which is not there."""
    six = ":" in source
    level, number = (41, {"free": 78, "transparent": 75}[option]) if six else (0, {"free": 15, "transparent": 19}[option])
    def act(mark):
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.setsockopt(level, number, 1)
            s.bind((source, 0))
            s.sendto(mark, (target, 81))
    return act
def by_raw_socket(source, target):
    six = ":" in source
    def act(mark):
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, 255) as s:
            if six:
                s.setsockopt(41, 36, 1)
            s.sendto(packet(source, target, mark), (target, 0))
    return act
def by_control(source, target):
    """By a source that is given with each datagram: IPV6_PKTINFO, IP_PKTINFO."""
    def act(mark):
        if ":" in source:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
                s.setsockopt(41, 78, 1)
                s.sendmsg([mark], [(41, 50, ip(source) + struct.pack("=i", 0))], 0, (target, 81))
        else:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.setsockopt(0, 15, 1)
                s.sendmsg([mark], [(0, 8, struct.pack("=i", 0) + ip(source) + ip("0.0.0.0"))], 0, (target, 81))
    return act
def sh(*command):
    if subprocess.run(command, capture_output=True).returncode:
        raise OSError(command)
