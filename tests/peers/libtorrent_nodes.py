"""Several libtorrent sessions that are nodes of the DHT and nothing else. Prints `ready` when each knows eight others.

Usage: libtorrent_nodes.py KNOWN_NODES ADDRESS [ADDRESS ...]

KNOWN_NODES are HOST:PORT, separated by commas.
"""
import sys
import time
import warnings

import libtorrent as lt

warnings.simplefilter("ignore")
known = [node.rsplit(":", 1) for node in sys.argv[1].split(",")]
sessions = [
    lt.session({
        "listen_interfaces": address,
        "enable_dht": True,
        "dht_bootstrap_nodes": "",
        # All nodes are in one network, and say more in a second than those of the Internet.
        "dht_restrict_routing_ips": False,
        "dht_restrict_search_ips": False,
        "dht_block_ratelimit": 1000000,
        "dht_ignore_dark_internet": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "alert_mask": 0,
    })
    for address in sys.argv[2:]
]
for session in sessions:
    for host, port in known:
        session.add_dht_node((host, int(port)))


def known_count(session):
    """Returns the number of nodes in the routing table."""
    session.post_session_stats()
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.session_stats_alert):
                return alert.values["dht.dht_nodes"]


while any(known_count(session) < 8 for session in sessions):
    time.sleep(0.1)
print("ready", flush=True)
while True:
    time.sleep(3600)
