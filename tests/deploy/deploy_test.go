// Package deploy checks what deploy/ holds for those who run TinyKV: against the schemas of the
// programs that read it, and against the servers whose options and ports it names. It is a module
// of its own, so that those schemas are no dependencies of the servers.
package deploy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../.."

var programs = []string{"tinykv-server", "tinyscheduler", "tinyctl"}

var binDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tinykv-deploy-")
	if err != nil {
		panic(err)
	}
	build := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./cmd/...")
	build.Dir = root
	out, err := build.CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
	} else {
		binDir = dir
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// run calls a program, which must end with exit code 0, and returns what it printed.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), filepath.Join(binDir, program),
		args...).CombinedOutput()
	require.NoError(t, err, "%s %v: %s", program, args, out)
	return string(out)
}

// checkServer has a server check a command line of a container as it would start with it.
// Directories are not touched by that; names in $(...) stand for what the container's environment
// has.
func checkServer(t *testing.T, program string, args []string) {
	t.Helper()
	require.Contains(t, programs[:2], program)
	var line []string
	for _, a := range args {
		line = append(line, strings.ReplaceAll(a, "$(POD)", program+"-0"))
	}
	require.Contains(t, run(t, program, append(line, "--config-check")...), "configuration is fine")
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	require.NoError(t, err)
	return string(data)
}

func TestConfigurationsOfPackages(t *testing.T) {
	for program, dir := range map[string]string{
		"tinykv-server": "/var/lib/tinykv", "tinyscheduler": "/var/lib/tinyscheduler",
	} {
		path := "deploy/packages/" + program + ".toml"
		run(t, program, "--config", filepath.Join(root, path), "--config-check")
		text := read(t, path)
		require.Contains(t, text, "\ndata-dir = \""+dir+"\"\n", "where the unit may write")
		// What is commented out must be right, too, but for the files that it names.
		var lines []string
		for line := range strings.Lines(text) {
			if option := regexp.MustCompile(`^#([a-z-]+ = .*)`).FindStringSubmatch(
				line); option != nil {
				line = option[1] + "\n"
			}
			lines = append(lines, line)
		}
		certs := t.TempDir()
		run(t, "tinyctl", "cert", "create-ca", "--certs-dir", certs)
		run(t, "tinyctl", "cert", "create-node", "store1.example", "--certs-dir", certs)
		files, err := filepath.Glob(filepath.Join(certs, "node-*.crt"))
		require.NoError(t, err)
		require.Len(t, files, 1)
		all := strings.Join(lines, "")
		all = regexp.MustCompile(`"/etc/tinykv/ca\.pem"`).ReplaceAllString(all,
			`"`+filepath.Join(certs, "ca.crt")+`"`)
		all = regexp.MustCompile(`"/etc/tinykv/\w+\.pem"`).ReplaceAllString(all, `"`+files[0]+`"`)
		all = regexp.MustCompile(`"/etc/tinykv/\w+\.key"`).ReplaceAllString(all,
			`"`+strings.TrimSuffix(files[0], ".crt")+`.key"`)
		conf := filepath.Join(t.TempDir(), "c.toml")
		require.NoError(t, os.WriteFile(conf, []byte(all), 0o600))
		run(t, program, "--config", conf, "--config-check")
	}
}

// TestUnits: systemd understands the units, and their hardening is not lost.
func TestUnits(t *testing.T) {
	var units []string
	dir := t.TempDir()
	for _, program := range programs[:2] {
		path := "deploy/systemd/" + program + ".service"
		text := read(t, path)
		start := regexp.MustCompile(
			`(?m)^ExecStart=/usr/bin/(\S+) --config (\S+)$`).FindStringSubmatch(text)
		require.NotNil(t, start, path)
		require.Equal(t, []string{program, "/etc/tinykv/" + program + ".toml"}, start[1:])
		require.Contains(t, text, "\nType=notify\n")
		require.Contains(t, read(t, "deploy/packages/tinykv.sysusers"),
			"u "+regexp.MustCompile(`(?m)^User=(.*)$`).FindStringSubmatch(text)[1]+" ")
		unit := filepath.Join(dir, program+".service")
		require.NoError(t,
			os.WriteFile(unit, []byte(strings.ReplaceAll(text, "/usr/bin/", binDir+"/")), 0o600))
		units = append(units, unit)
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	out, err := exec.CommandContext(t.Context(), analyze,
		append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out), "systemd-analyze has a warning")
	for _, unit := range units {
		out, err := exec.CommandContext(t.Context(), analyze, "security", "--offline=true",
			"--threshold=20", unit).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}

// TestPackageFiles: what the package holds exists, and shell scripts have no faults of syntax.
func TestPackageFiles(t *testing.T) {
	sources := regexp.MustCompile(`src: "?([^,"]+)`).FindAllStringSubmatch(read(t,
		"deploy/packages/nfpm.yaml"), -1)
	require.Greater(t, len(sources), 5)
	var installed []string
	for _, s := range sources {
		if name, binary := strings.CutPrefix(s[1], "${BIN}/"); binary {
			installed = append(installed, name)
			continue
		}
		if name, made := strings.CutPrefix(s[1], "${SHARE}/"); made {
			// dist.sh writes what tinyctl prints, each for one of the shells or the manual
			require.Contains(t, []string{
				"tinyctl.1.gz", "tinyctl.bash", "tinyctl.zsh", "tinyctl.fish",
			}, name)
			continue
		}
		require.FileExists(t, filepath.Join(root, s[1]))
	}
	slices.Sort(installed)
	want := slices.Sorted(slices.Values(programs))
	require.Equal(t, want, installed)
	scripts, err := filepath.Glob(filepath.Join(root, "deploy/packages/*.sh"))
	require.NoError(t, err)
	require.Len(t, scripts, 4)
	for _, script := range scripts {
		out, err := exec.CommandContext(t.Context(), "sh", "-n", script).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
}
