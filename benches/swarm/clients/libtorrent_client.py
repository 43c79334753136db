"""libtorrent at a task of the swarm bench. Prints "ready" when the task begins and "done" when it has ended.

Usage: libtorrent_client.py leech TORRENT FOLDER ADDRESS HOST:PORT...
                     seed TORRENT FOLDER ADDRESS
                     check TORRENT FOLDER THREADS
                     create PATH PIECE_LENGTH THREADS
                     prepare TORRENTS DATA STATE
                     restart STATE
"""
import os
import sys
import time
import warnings

import libtorrent as lt

warnings.simplefilter("ignore")
mode, *arguments = sys.argv[1:]


def say(word):
    print(word, flush=True)


def session(address="127.0.0.1:0", **settings):
    return lt.session({
        "listen_interfaces": address,
        "enable_dht": False,
        "enable_lsd": False,
        "enable_upnp": False,
        "enable_natpmp": False,
        "enable_outgoing_utp": False,
        "enable_incoming_utp": False,
        "in_enc_policy": lt.enc_policy.pe_disabled,
        "out_enc_policy": lt.enc_policy.pe_disabled,
        "allow_multiple_connections_per_ip": True,
        "alert_mask": lt.alert.category_t.status_notification | lt.alert.category_t.storage_notification,
        **settings,
    })


def torrent(path, folder):
    parameters = lt.add_torrent_params()
    parameters.ti = lt.torrent_info(path)
    parameters.save_path = folder
    return at_once(parameters)


def at_once(parameters):
    """Starts without waiting for its turn, of which the session thinks once a second."""
    parameters.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    return parameters


def wait_for(ses, kind, count=1):
    while count > 0:
        ses.wait_for_alert(1000)
        count -= sum(isinstance(alert, kind) for alert in ses.pop_alerts())


def stay():
    while True:
        time.sleep(1)


if mode == "leech":
    path, folder, address, *peers = arguments
    ses = session(address)
    say("ready")
    handle = ses.add_torrent(torrent(path, folder))
    # A peer that is connected to before is tried again much later.
    wait_for(ses, lt.torrent_checked_alert)
    for peer in peers:
        host, port = peer.rsplit(":", 1)
        handle.connect_peer((host, int(port)))
    wait_for(ses, lt.torrent_finished_alert)
    # Finished is reported before the last pieces are written.
    handle.flush_cache()
    wait_for(ses, lt.cache_flushed_alert)
    say("done")
    stay()
elif mode == "seed":
    path, folder, address = arguments
    ses = session(address, unchoke_slots_limit=-1)
    parameters = torrent(path, folder)
    parameters.flags |= lt.torrent_flags.seed_mode
    ses.add_torrent(parameters)
    # Before that it refuses connections.
    wait_for(ses, lt.torrent_checked_alert)
    say("ready")
    stay()
elif mode == "check":
    path, folder, threads = arguments
    ses = session(hashing_threads=int(threads))
    say("ready")
    handle = ses.add_torrent(torrent(path, folder))
    wait_for(ses, lt.torrent_checked_alert)
    assert handle.status().is_seeding, "not all is there"
    say("done")
    stay()
elif mode == "create":
    path, piece_length, threads = arguments
    say("ready")
    files = lt.file_storage()
    lt.add_files(files, path)
    made = lt.create_torrent(files, int(piece_length), lt.create_torrent.v1_only)
    lt.set_piece_hashes(made, os.path.dirname(path))
    lt.bencode(made.generate())
    say("done")
    stay()
elif mode == "prepare":
    torrents, data, state = arguments
    for name in os.listdir(torrents):
        parameters = torrent(os.path.join(torrents, name), data)
        parameters.have_pieces = [True] * parameters.ti.num_pieces()
        buffer = lt.write_resume_data_buf(parameters)
        with open(os.path.join(state, name + ".resume"), "wb") as out:
            out.write(buffer)
elif mode == "restart":
    (state,) = arguments
    say("ready")
    # Several alerts for each torrent; those that have no room are lost.
    ses = session(active_seeds=-1, active_limit=-1, active_checking=-1, alert_queue_size=2_000_000)
    names = os.listdir(state)
    for name in names:
        with open(os.path.join(state, name), "rb") as file:
            parameters = lt.read_resume_data(file.read())
        ses.async_add_torrent(at_once(parameters))
    wait_for(ses, lt.torrent_checked_alert, len(names))
    say("done")
    stay()
