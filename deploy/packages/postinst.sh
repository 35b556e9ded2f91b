#!/bin/sh
# Creates the user and gives it the configuration. No server is started or restarted: a new one needs its addresses
# first, and an upgrade goes server by server (docs/operations.md).
set -e
if [ "$1" = configure ]; then
	if command -v systemd-sysusers >/dev/null; then
		systemd-sysusers tinykv.conf
	elif ! getent passwd tinykv >/dev/null; then
		useradd --system --user-group --home-dir /var/lib/tinykv --no-create-home --shell /usr/sbin/nologin tinykv
	fi
	for file in /etc/tinykv/tinykv-server.toml /etc/tinykv/tinyscheduler.toml; do
		if [ -e "$file" ]; then
			chgrp tinykv "$file"
		fi
	done
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload
	fi
fi
