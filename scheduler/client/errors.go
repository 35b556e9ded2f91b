package client

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tinykv/tinykv/proto/pkg/schedulerpb"
)

var (
	// ErrAlreadyBootstrapped means that another store has bootstrapped the cluster; the caller
	// drops the first region it had prepared.
	ErrAlreadyBootstrapped = errors.New("scheduler client: cluster is already bootstrapped")
	// ErrNotBootstrapped means that no store has bootstrapped the cluster yet.
	ErrNotBootstrapped = errors.New("scheduler client: cluster is not bootstrapped")
	// ErrStoreTombstone means that the store was removed for good and must not come back.
	ErrStoreTombstone = errors.New("scheduler client: store is tombstone")
	// ErrOldCopy means that the store's data is older than what it had promised.
	ErrOldCopy = errors.New("scheduler client: the data directory is an older copy")
	// ErrDuplicateStore means that there is another run of the same store.
	ErrDuplicateStore = errors.New("scheduler client: another run of the same store")
	// ErrStoreNotFound means that no store of that id is registered.
	ErrStoreNotFound = errors.New("scheduler client: store not found")
	// ErrRegionNotFound means that the placement service knows nothing of that region.
	ErrRegionNotFound = errors.New("scheduler client: region not found")
	// ErrClusterMismatch means that the service belongs to another cluster than before.
	ErrClusterMismatch = errors.New("scheduler client: cluster id mismatch")
	// ErrRejected wraps an answer that refuses the request for good, such as a duplicate address.
	ErrRejected = errors.New("scheduler client: request rejected")
	// ErrClosed means that the client was closed.
	ErrClosed = errors.New("scheduler client: closed")
)

// headerError turns the error of a response header into a sentinel.
func headerError(h *schedulerpb.ResponseHeader) error {
	e := h.GetError()
	switch e.GetType() {
	case schedulerpb.ErrorType_OK:
		return nil
	case schedulerpb.ErrorType_NOT_BOOTSTRAPPED:
		return ErrNotBootstrapped
	case schedulerpb.ErrorType_ALREADY_BOOTSTRAPPED:
		return ErrAlreadyBootstrapped
	case schedulerpb.ErrorType_STORE_TOMBSTONE:
		return ErrStoreTombstone
	case schedulerpb.ErrorType_OLD_COPY:
		return fmt.Errorf("%w: %s", ErrOldCopy, e.GetMessage())
	case schedulerpb.ErrorType_DUPLICATE_STORE:
		return fmt.Errorf("%w: %s", ErrDuplicateStore, e.GetMessage())
	case schedulerpb.ErrorType_REGION_NOT_FOUND:
		return ErrRegionNotFound
	default:
		return fmt.Errorf("%w: %s", ErrRejected, e.GetMessage())
	}
}

// rpcError sorts a gRPC error: retry is true if another try, perhaps at another member, may help.
func rpcError(err error) (mapped error, retry bool) {
	st, ok := status.FromError(err)
	if !ok {
		return err, true
	}
	switch st.Code() {
	case codes.FailedPrecondition:
		return fmt.Errorf("%w: %s", ErrClusterMismatch, st.Message()), false
	case codes.InvalidArgument:
		return fmt.Errorf("%w: %s", ErrRejected, st.Message()), false
	case codes.Unknown:
		if strings.Contains(st.Message(), "invalid store ID") {
			return fmt.Errorf("%w: %s", ErrStoreNotFound, st.Message()), false
		}
		return fmt.Errorf("%w: %s", ErrRejected, st.Message()), false
	case codes.Unimplemented, codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%w: %s", ErrRejected, st.Message()), false
	default:
		return err, true
	}
}
