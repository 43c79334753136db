"""A libtorrent session that is a node of the DHT and nothing else. Prints its process id when it runs.

Usage: libtorrent_node.py ADDRESS
"""
import os
import sys
import time
import warnings

import libtorrent as lt

warnings.simplefilter("ignore")
session = lt.session({
    "listen_interfaces": sys.argv[1],
    "enable_dht": True,
    "dht_bootstrap_nodes": "",
    # The senders of the queries are on one machine, and ask more than hosts of the Internet may.
    "dht_restrict_routing_ips": False,
    "dht_restrict_search_ips": False,
    "dht_block_ratelimit": 1000000,
    "dht_upload_rate_limit": 100000000,
    "dht_ignore_dark_internet": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "alert_mask": 0,
})
while not session.is_dht_running():
    time.sleep(0.01)
print(os.getpid(), flush=True)
while True:
    time.sleep(3600)
