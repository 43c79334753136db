"""A libtorrent session that fetches the metadata of a magnet link. Prints the milliseconds that it took.

Usage: libtorrent_client.py peer|warm|cold ADDRESS LINK HOST:PORT
"""
import sys
import time
import warnings

import libtorrent as lt

warnings.simplefilter("ignore")
mode, address, link, known = sys.argv[1:]
host, port = known.rsplit(":", 1)
begun = time.monotonic()
session = lt.session({
    "listen_interfaces": address,
    "enable_dht": mode != "peer",
    "dht_bootstrap_nodes": "" if mode == "peer" else known,
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_block_ratelimit": 1000000,
    "dht_ignore_dark_internet": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "allow_multiple_connections_per_ip": True,
    "alert_mask": lt.alert.category_t.status_notification,
})


def known_nodes():
    session.post_session_stats()
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.session_stats_alert):
                return alert.values["dht.dht_nodes"]


if mode == "warm":
    while known_nodes() < 8:
        time.sleep(0.05)
    time.sleep(8)
    begun = time.monotonic()
parameters = lt.parse_magnet_uri(link)
parameters.save_path = "."
handle = session.add_torrent(parameters)
if mode == "peer":
    handle.connect_peer((host, int(port)))
while True:
    session.wait_for_alert(1000)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.metadata_received_alert):
            print(round((time.monotonic() - begun) * 1000), flush=True)
            sys.exit()
