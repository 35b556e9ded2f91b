#!/bin/sh
# Builds bin/dist: tarballs and deb packages for Linux, a list of what is linked in (SBOM) and SHA256SUMS. The same
# commit gives the same bytes: times are the commit's, paths of this machine are trimmed, C is not linked in.
# Usage: dist.sh VERSION LDFLAGS
set -eu
version=$1
ldflags=$2
go=${GO:-go}
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.48.0
cyclonedx=github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0
cd "$(dirname "$0")/../.."
umask 022
out=$PWD/bin/dist
rm -rf "$out" && mkdir -p "$out"
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH="$epoch"
cli=github.com/tinykv/tinykv/pkg/cli
ldflags="-s -w $ldflags -X $cli.Commit=$(git rev-parse HEAD) -X $cli.CommitTime=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)"
# A Debian version begins with a digit, and a dash has a meaning there.
case $version in
v[0-9]*) deb=$(echo "${version#v}" | tr - +) ;;
[0-9]*.*) deb=$(echo "$version" | tr - +) ;;
*) deb=0~$(date -u -d "@$epoch" +%Y%m%d.%H%M%S).$(echo "$version" | tr -c 'A-Za-z0-9.\n' +) ;;
esac
# The manual page and the completions of shells are the same everywhere: the builder's own tinyctl writes them.
share=$out/share
mkdir -p "$share"
"$go" build -buildvcs=false -trimpath -ldflags "$ldflags" -o "$share/tinyctl" ./cmd/tinyctl
"$share/tinyctl" man >"$share/tinyctl.1" && gzip -n -9 "$share/tinyctl.1"
for shell in bash zsh fish; do
	"$share/tinyctl" completion "$shell" >"$share/tinyctl.$shell"
done
rm "$share/tinyctl"
for arch in amd64 arm64; do
	name=tinykv-$version-linux-$arch
	dir=$out/$name
	mkdir -p "$dir/bin"
	CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 \
		"$go" build -buildvcs=false -trimpath -ldflags "$ldflags" -o "$dir/bin/" ./cmd/...
	cp -r README.md LICENSE CHANGELOG.md docs deploy "$share" "$dir/"
	tar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX,go-w \
		--format=ustar -C "$out" -cf - "$name" | gzip -n -9 >"$out/$name.tar.gz"
	ARCH=$arch VERSION=$deb BIN=$dir/bin SHARE=$dir/share \
		"$go" run -trimpath $nfpm package --config deploy/packages/nfpm.yaml --packager deb --target "$out/"
	for program in tinykv-server tinyscheduler tinyctl; do
		"$go" run -trimpath $cyclonedx bin -json -noserial -notimestamp -version "$version" \
			-output "$out/$program-$version-linux-$arch.cdx.json" "$dir/bin/$program"
	done
	rm -rf "$dir"
done
rm -rf "$share"
(cd "$out" && sha256sum -- *.tar.gz *.deb *.json >SHA256SUMS)
