"""A mesh's proxy in TPROXY mode: carries callers on, in their name, to the port they asked for.

Arguments: its port, and the ports that callers may ask for. Its rules are by port, so another one
means that somebody changed the destination before.
"""
import socket
import sys
import threading

TRANSPARENT = {socket.AF_INET: (0, 19), socket.AF_INET6: (41, 75)}
SO_MARK = 36
MARK = 1337
ASKED = [int(port) for port in sys.argv[2:]]


def transparent(family):
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(*TRANSPARENT[family], 1)
    return made


def carry(family, caller):
    answer = b"mesh>"
    try:
        port = caller.getsockname()[1]
        if port not in ASKED:
            raise OSError(f"was asked for port {port}")
        onward = transparent(family)
        onward.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
        onward.settimeout(20)
        onward.bind((caller.getpeername()[0], 0))
        onward.connect(caller.getsockname()[:2])
        while got := onward.recv(2048):
            answer += got
    except OSError as error:
        answer += str(error).encode()
    caller.sendall(answer)
    caller.close()


def serve(family, listener):
    while True:
        caller, _ = listener.accept()
        threading.Thread(target=carry, args=(family, caller), daemon=True).start()


for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    listener = transparent(family)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((address, int(sys.argv[1])))
    listener.listen()
    threading.Thread(target=serve, args=(family, listener), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
