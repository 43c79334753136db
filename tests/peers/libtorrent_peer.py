"""A libtorrent session that seeds or downloads one torrent. Prints what happens, a line each.

Usage: libtorrent_peer.py seed|download|partly TORRENT|MAGNET FOLDER ADDRESS [HOST:PORT ...]

`partly` pauses when it has some pieces, and saves the resume data to `resume.data` in FOLDER.

With DHT_NODES, HOST:PORT separated by commas, it takes part in the DHT and knows these nodes. A lone comma stands for
none. The torrent is added when a node is in the routing table: an earlier search would find nobody, and the next one comes
minutes later. With LOCAL_DISCOVERY, it finds peers in the local network (BEP 14), and prints whom it heard.

With UPLOAD_LIMIT it sends that many bytes a second, and tells every message of its peers.
"""
import os
import sys
import time
import warnings

import libtorrent as lt

warnings.simplefilter("ignore")
mode, torrent, folder, address, *peers = sys.argv[1:]
dht_nodes = os.environ.get("DHT_NODES", "")
upload_limit = int(os.environ.get("UPLOAD_LIMIT", 0))
categories = lt.alert.category_t
alerts = (categories.error_notification | categories.status_notification | categories.tracker_notification
          | categories.connect_notification | categories.storage_notification)
if "LOCAL_DISCOVERY" in os.environ:
    alerts |= categories.peer_notification
if upload_limit:
    alerts |= categories.peer_log_notification
session = lt.session({
    "listen_interfaces": address,
    "enable_dht": bool(dht_nodes),
    "dht_bootstrap_nodes": "",
    # All nodes are in one network, and say more in a second than those of the Internet.
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_block_ratelimit": 1000000,
    "dht_ignore_dark_internet": False,
    "enable_lsd": "LOCAL_DISCOVERY" in os.environ,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_outgoing_utp": False,
    "enable_incoming_utp": False,
    "allow_multiple_connections_per_ip": True,
    "outgoing_interfaces": address.rsplit(":", 1)[0].strip("[]"),
    "alert_mask": alerts,
})


def known_nodes():
    """Returns the number of nodes in the routing table."""
    session.post_session_stats()
    while True:
        session.wait_for_alert(1000)
        for alert in session.pop_alerts():
            if isinstance(alert, lt.session_stats_alert):
                return alert.values["dht.dht_nodes"]


for node in filter(None, dht_nodes.split(",")):
    host, port = node.rsplit(":", 1)
    session.add_dht_node((host, int(port)))
while dht_nodes.strip(",") and not known_nodes():
    time.sleep(0.05)
if torrent.startswith("magnet:"):
    parameters = lt.parse_magnet_uri(torrent)
else:
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(torrent)
parameters.save_path = folder
handle = session.add_torrent(parameters)
handle.set_upload_limit(upload_limit)
for peer in peers:
    host, port = peer.rsplit(":", 1)
    handle.connect_peer((host.strip("[]"), int(port)))

state = None
# A download is complete before its last pieces are written: it is reported when they are.
is_flushing = is_flushed = is_partly = False
while True:
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        print("alert", alert.message(), flush=True)
        if isinstance(alert, lt.save_resume_data_alert):
            with open(os.path.join(folder, "resume.data"), "wb") as file:
                file.write(lt.write_resume_data_buf(alert.params))
            print("saved", flush=True)
        if isinstance(alert, lt.cache_flushed_alert):
            is_flushed |= is_flushing
            if is_partly:
                handle.save_resume_data()
    status = handle.status()
    if mode == "partly" and status.num_pieces >= 5 and not is_partly:
        is_partly = True
        handle.unset_flags(lt.torrent_flags.auto_managed)
        handle.pause()
        # Resume data may name pieces that are not written yet.
        handle.flush_cache()
    new = "seeding" if status.is_seeding else str(status.state)
    if new == "seeding" and mode == "download" and not is_flushed:
        if not is_flushing:
            is_flushing = True
            handle.flush_cache()
        continue
    if new != state:
        state = new
        print(state, flush=True)
    time.sleep(0.02)
