package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/stretchr/testify/require"
)

// stage is one FROM of a Dockerfile with what it inherits from stages before.
type stage struct {
	expose, entrypoint, health []string
	user                       string
	volumes                    []string
}

// words are the arguments of an instruction.
func words(n *parser.Node) (out []string) {
	for n = n.Next; n != nil; n = n.Next {
		out = append(out, n.Value)
	}
	return out
}

// stages reads the Dockerfile and checks that what it copies from the repository exists.
func stages(t *testing.T) map[string]stage {
	t.Helper()
	parsed, err := parser.Parse(strings.NewReader(read(t, "deploy/docker/Dockerfile")))
	require.NoError(t, err)
	require.Empty(t, parsed.Warnings)
	out, name, copied := map[string]stage{}, "", map[string]bool{}
	for _, n := range parsed.AST.Children {
		args, s := words(n), out[name]
		switch strings.ToUpper(n.Value) {
		case "FROM":
			require.Len(t, args, 3, "every stage has a name")
			name, s = args[2], out[args[0]]
		case "COPY":
			if !slices.ContainsFunc(n.Flags, func(f string) bool {
				return strings.HasPrefix(f, "--from=")
			}) {
				for _, source := range args[:len(args)-1] {
					_, err := os.Stat(filepath.Join(root, source))
					require.NoError(t, err)
					copied[source] = true
				}
			}
		case "EXPOSE":
			s.expose = args
		case "ENTRYPOINT":
			require.True(t, n.Attributes["json"], "there is no shell in the image")
			s.entrypoint = args
		case "HEALTHCHECK":
			s.health = args
		case "USER":
			s.user = args[0]
		case "VOLUME":
			s.volumes = args
		}
		out[name] = s
	}
	// Each directory of the repository that the programs are made of is copied.
	for _, dir := range []string{"cmd", "kv", "log", "pkg", "proto", "raft", "scheduler"} {
		require.True(t, copied[dir], dir)
	}
	return out
}

func TestImages(t *testing.T) {
	all := stages(t)
	for program, ports := range map[string][]string{
		"tinyscheduler": {"2379", "2380"}, "tinykv-server": {"20160", "20180"},
	} {
		s := all[program]
		require.Equal(t, ports, s.expose)
		require.Equal(t, program, s.entrypoint[0])
		checkServer(t, program, s.entrypoint[1:])
		require.Equal(t, "65532:65532", s.user)
		require.Equal(t, []string{s.entrypoint[2]}, s.volumes)
		// The health check is a command that exists, and asks a port of this image.
		require.Equal(t, []string{"CMD", "tinyctl", "check", "serving"}, s.health[:4])
		require.True(t,
			slices.ContainsFunc(ports, func(p string) bool {
				return strings.Contains(s.health[4], "127.0.0.1:"+p+"/")
			}))
		run(t, "tinyctl", append(slices.Clone(s.health[2:]), "--help")...)
	}
}

// TestCompose: the file is one of Compose's schema, and each service starts with its command and is
// reached by the others under the name that it tells them.
func TestCompose(t *testing.T) {
	path := filepath.Join(root, "deploy/docker/compose.yaml")
	project, err := loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: filepath.Dir(path), ConfigFiles: []types.ConfigFile{{Filename: path}},
		Environment: types.Mapping{},
	})
	require.NoError(t, err)
	images := stages(t)
	stores := 0
	for name, s := range project.Services {
		require.FileExists(t, filepath.Join(s.Build.Context, s.Build.Dockerfile))
		image, ok := images[s.Build.Target]
		require.True(t, ok, s.Build.Target)
		args := append(slices.Clone(image.entrypoint[1:]), s.Command...)
		checkServer(t, s.Build.Target, args)
		if s.Build.Target == "tinykv-server" {
			stores++
			require.Contains(t, args, "--scheduler=placement:2379")
			require.Contains(t, args, "--advertise-addr="+name+":20160")
			require.Contains(t, args, "--advertise-status-addr="+name+":20180")
		} else {
			require.Contains(t, args, "--advertise-client-urls=http://"+name+":2379")
		}
		require.Len(t, s.Volumes, 1)
		require.Equal(t, name, s.Volumes[0].Source, "a volume of its own")
		require.Equal(t, "/data", s.Volumes[0].Target)
		require.Contains(t, project.Volumes, name)
	}
	require.Equal(t, 3, stores)
	require.Len(t, project.Services, 4)
}
