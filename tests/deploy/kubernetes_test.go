package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

// manifests are the objects of the file by name; a field that Kubernetes does not know is an error.
type manifests struct {
	services map[string]core.Service
	budgets  map[string]policy.PodDisruptionBudget
	sets     map[string]apps.StatefulSet
}

func readManifests(t *testing.T) manifests {
	t.Helper()
	m := manifests{
		map[string]core.Service{}, map[string]policy.PodDisruptionBudget{},
		map[string]apps.StatefulSet{},
	}
	for _, text := range strings.Split(read(t, "deploy/kubernetes/tinykv.yaml"), "\n---\n")[1:] {
		var kind meta.TypeMeta
		require.NoError(t, yaml.Unmarshal([]byte(text), &kind))
		switch kind.APIVersion + " " + kind.Kind {
		case "v1 Service":
			decode(t, text, m.services)
		case "policy/v1 PodDisruptionBudget":
			decode(t, text, m.budgets)
		case "apps/v1 StatefulSet":
			decode(t, text, m.sets)
		default:
			t.Fatalf("no check for %v", kind)
		}
	}
	return m
}

func decode[T any](t *testing.T, text string, into map[string]T) {
	t.Helper()
	var object T
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), &object, yaml.DisallowUnknownFields),
		"%s", text)
	var named struct{ Metadata struct{ Name string } }
	require.NoError(t, yaml.Unmarshal([]byte(text), &named))
	into[named.Metadata.Name] = object
}

func TestKubernetes(t *testing.T) {
	m := readManifests(t)
	require.Len(t, m.sets, 2)
	images := stages(t)
	for name, set := range m.sets {
		pod, claims := set.Spec.Template, set.Spec.VolumeClaimTemplates
		require.EqualValues(t, 3, *set.Spec.Replicas)
		selects(t, set.Spec.Selector, pod.Labels)
		service, ok := m.services[set.Spec.ServiceName]
		require.True(t, ok, set.Spec.ServiceName)
		require.Equal(t, core.ClusterIPNone, service.Spec.ClusterIP)
		require.True(t, service.Spec.PublishNotReadyAddresses,
			"members find each other before they are ready")
		require.True(t,
			labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(pod.Labels)))
		selects(t, m.budgets[name].Spec.Selector, pod.Labels)
		require.Equal(t, 1, m.budgets[name].Spec.MaxUnavailable.IntValue())

		require.Len(t, pod.Spec.Containers, 1)
		c := pod.Spec.Containers[0]
		require.Equal(t, []string{name}, c.Command)
		require.Contains(t, images, strings.TrimSuffix(c.Image, ":latest"))
		require.True(t,
			slices.ContainsFunc(c.Env, func(e core.EnvVar) bool { return e.Name == "POD" }))
		checkServer(t, name, c.Args)
		checkNames(t, set, c.Args)
		checkPorts(t, &c, service.Spec.Ports, images[name].expose)

		require.Len(t, claims, 1)
		require.False(t, claims[0].Spec.Resources.Requests.Storage().IsZero())
		require.Equal(t, claims[0].Name, c.VolumeMounts[0].Name)
		dir := c.Args[slices.IndexFunc(c.Args, func(a string) bool {
			return strings.HasPrefix(a, "--data-dir=")
		})]
		require.True(t, strings.HasPrefix(dir, "--data-dir="+c.VolumeMounts[0].MountPath+"/"),
			"beside lost+found")
		require.False(t, c.Resources.Limits.Memory().IsZero(),
			"the engine's memory follows from it")
		require.Equal(t, images[name].user,
			fmt.Sprintf("%d:%d", *pod.Spec.SecurityContext.RunAsUser,
				*pod.Spec.SecurityContext.RunAsGroup))
	}
}

func selects(t *testing.T, s *meta.LabelSelector, l map[string]string) {
	t.Helper()
	selector, err := meta.LabelSelectorAsSelector(s)
	require.NoError(t, err)
	require.False(t, selector.Empty())
	require.True(t, selector.Matches(labels.Set(l)))
}

// checkNames sees that every host that an option names is one that the Services of the file have.
func checkNames(t *testing.T, set apps.StatefulSet, args []string) {
	t.Helper()
	self := fmt.Sprintf("$(POD).%s:", set.Spec.ServiceName)
	for _, a := range args {
		option, value, _ := strings.Cut(a, "=")
		switch {
		case strings.HasPrefix(option, "--advertise-"):
			require.Contains(t, value, self, a)
		case option == "--scheduler", option == "--initial-cluster":
			for i := range 3 {
				require.Contains(t, value, fmt.Sprintf("tinyscheduler-%d.tinyscheduler:", i), a)
			}
		}
	}
}

// checkPorts sees that container, Service and image have the same ports, and that probes and
// options name them.
func checkPorts(t *testing.T, c *core.Container, ports []core.ServicePort, exposed []string) {
	t.Helper()
	byName := map[string]int32{}
	var numbers []string
	for _, p := range c.Ports {
		byName[p.Name] = p.ContainerPort
		numbers = append(numbers, fmt.Sprint(p.ContainerPort))
		require.Contains(t, strings.Join(c.Args, " "), fmt.Sprintf("0.0.0.0:%d", p.ContainerPort))
	}
	require.Equal(t, exposed, numbers)
	for _, p := range ports {
		require.Equal(t, byName[p.Name], p.Port)
	}
	require.Len(t, ports, len(c.Ports))
	require.Contains(t, byName, c.ReadinessProbe.HTTPGet.Port.String())
	require.Equal(t, "/health", c.ReadinessProbe.HTTPGet.Path)
	require.Contains(t, byName, c.LivenessProbe.TCPSocket.Port.String())
}
