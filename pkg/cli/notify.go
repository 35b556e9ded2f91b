package cli

import (
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready reports to the service manager that the process serves. It follows systemd's protocol for
// units of Type=notify: one datagram to the socket that NOTIFY_SOCKET names. Without that variable
// it does nothing. An error means that the datagram was not sent; the process can go on, and the
// service manager waits or gives up.
func Ready() error { return notify(daemon.SdNotifyReady) }

// Stopping reports to the service manager that an orderly stop has begun. Everything else is as for
// Ready.
func Stopping() error { return notify(daemon.SdNotifyStopping) }

func notify(state string) error {
	// The variable stays in the environment: Stopping needs it after Ready.
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify the service manager of %s: %w", state, err)
	}
	return nil
}
