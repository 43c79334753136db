"""Joins two network interfaces by a link with a delay and a rate, in user space. Prints a line when they exist.

Usage: relay.py NAME NAME DELAY_MS MBIT_PER_S
"""
import collections
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MAX_WAITING_S = 0.5


def open_interface(name):
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


ends = [open_interface(name) for name in sys.argv[1:3]]
delay, bytes_per_s = float(sys.argv[3]) / 1000, float(sys.argv[4]) * 125_000
waiting = [collections.deque(), collections.deque()]
free_at = [0.0, 0.0]
print("ready", flush=True)
while True:
    now = time.monotonic()
    for queue, other in zip(waiting, reversed(ends)):
        while queue and queue[0][0] <= now:
            try:
                os.write(other, queue.popleft()[1])
            except OSError:
                # The other interface is down.
                pass
    due = min((queue[0][0] for queue in waiting if queue), default=now + 3600)
    readable, _, _ = select.select(ends, [], [], max(0, due - time.monotonic()))
    for side in range(2):
        while ends[side] in readable:
            try:
                packet = os.read(ends[side], 65536)
            except OSError:
                break
            now = time.monotonic()
            begin = max(now, free_at[side])
            if begin - now < MAX_WAITING_S:
                free_at[side] = begin + len(packet) / bytes_per_s
                waiting[side].append((free_at[side] + delay, packet))
