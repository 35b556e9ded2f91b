#!/bin/sh
# Stops the servers when the package is removed. An upgrade leaves them running.
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
	systemctl disable --now tinykv-server.service tinyscheduler.service
fi
