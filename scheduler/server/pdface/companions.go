package pdface

import (
	"context"

	"github.com/pingcap/kvproto/pkg/keyspacepb"
	"github.com/pingcap/kvproto/pkg/meta_storagepb"
	"github.com/pingcap/kvproto/pkg/pdpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// metaStorage answers that nothing is stored: clients look there for services and settings of PD
// that this project does not have. Writing is refused, so that nobody relies on what would be lost.
type metaStorage struct {
	meta_storagepb.UnimplementedMetaStorageServer
	back Backend
}

func (m *metaStorage) header() *meta_storagepb.ResponseHeader {
	return &meta_storagepb.ResponseHeader{ClusterId: m.back.ClusterID(), Revision: 1}
}

// Get implements meta_storagepb.MetaStorageServer.
func (m *metaStorage) Get(
	context.Context,
	*meta_storagepb.GetRequest,
) (*meta_storagepb.GetResponse, error) {
	return &meta_storagepb.GetResponse{Header: m.header()}, nil
}

// Watch implements meta_storagepb.MetaStorageServer: nothing ever changes.
func (m *metaStorage) Watch(
	_ *meta_storagepb.WatchRequest,
	stream meta_storagepb.MetaStorage_WatchServer,
) error {
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}

// Put implements meta_storagepb.MetaStorageServer.
func (m *metaStorage) Put(
	context.Context,
	*meta_storagepb.PutRequest,
) (*meta_storagepb.PutResponse, error) {
	return nil, errNoMetaStorage
}

// Delete implements meta_storagepb.MetaStorageServer.
func (m *metaStorage) Delete(
	context.Context,
	*meta_storagepb.DeleteRequest,
) (*meta_storagepb.DeleteResponse, error) {
	return nil, errNoMetaStorage
}

var (
	errNoMetaStorage = status.Error(codes.PermissionDenied,
		"the placement service keeps no keys for its clients: put them into the stores")
	errNoGlobalConfig = status.Error(codes.PermissionDenied,
		"the placement service keeps no configuration for its clients: put it into the stores")
)

// keyspaces knows the one keyspace there is.
type keyspaces struct {
	keyspacepb.UnimplementedKeyspaceServer
	back Backend
}

const defaultKeyspace = "DEFAULT"

func (k *keyspaces) header() *pdpb.ResponseHeader {
	return &pdpb.ResponseHeader{ClusterId: k.back.ClusterID()}
}

func theKeyspace() *keyspacepb.KeyspaceMeta {
	return &keyspacepb.KeyspaceMeta{
		Keyspace: &keyspacepb.KeyspaceMeta_Id{
			Id: 0,
		}, Name: defaultKeyspace, State: keyspacepb.KeyspaceState_ENABLED,
	}
}

// LoadKeyspace implements keyspacepb.KeyspaceServer.
func (k *keyspaces) LoadKeyspace(
	_ context.Context,
	req *keyspacepb.LoadKeyspaceRequest,
) (*keyspacepb.LoadKeyspaceResponse, error) {
	if name := req.GetName(); name != "" && name != defaultKeyspace {
		h := k.header()
		h.Error = &pdpb.Error{
			Type:    pdpb.ErrorType_ENTRY_NOT_FOUND,
			Message: "keyspace does not exist: " + name,
		}
		return &keyspacepb.LoadKeyspaceResponse{Header: h}, nil
	}
	return &keyspacepb.LoadKeyspaceResponse{Header: k.header(), Keyspace: theKeyspace()}, nil
}

// GetAllKeyspaces implements keyspacepb.KeyspaceServer.
func (k *keyspaces) GetAllKeyspaces(_ context.Context, req *keyspacepb.GetAllKeyspacesRequest,
) (*keyspacepb.GetAllKeyspacesResponse, error) {
	resp := &keyspacepb.GetAllKeyspacesResponse{Header: k.header()}
	if req.GetStartId() == 0 {
		resp.Keyspaces = append(resp.Keyspaces, theKeyspace())
	}
	return resp, nil
}

// LoadGlobalConfig implements pdpb.PDServer: each name that is asked for is not there.
func (f *Face) LoadGlobalConfig(
	_ context.Context,
	req *pdpb.LoadGlobalConfigRequest,
) (*pdpb.LoadGlobalConfigResponse, error) {
	resp := &pdpb.LoadGlobalConfigResponse{}
	for _, name := range req.GetNames() {
		resp.Items = append(resp.Items, &pdpb.GlobalConfigItem{Name: name, Error: &pdpb.Error{
			Type:    pdpb.ErrorType_GLOBAL_CONFIG_NOT_FOUND,
			Message: "global config " + name + " does not exist",
		}})
	}
	return resp, nil
}

// StoreGlobalConfig implements pdpb.PDServer.
func (f *Face) StoreGlobalConfig(
	context.Context,
	*pdpb.StoreGlobalConfigRequest,
) (*pdpb.StoreGlobalConfigResponse, error) {
	return nil, errNoGlobalConfig
}

// WatchGlobalConfig implements pdpb.PDServer: nothing ever changes.
func (f *Face) WatchGlobalConfig(
	_ *pdpb.WatchGlobalConfigRequest,
	stream pdpb.PD_WatchGlobalConfigServer,
) error {
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}
