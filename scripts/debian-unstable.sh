# shellcheck shell=bash
# For other scripts to source: packages of Debian's unstable release, unpacked and not installed.

# unpack_from_unstable FOLDER PACKAGE...: downloads the packages with a package list of their own, under apt's usual
# signature check, and unpacks them into the folder. What is installed, and what apt knows, stays as it is.
#
# DEBIAN_MIRROR names a mirror; unset, it is the one that this Debian uses already.
unpack_from_unstable() {
  local folder=$1 mirror=${DEBIAN_MIRROR:-}
  shift
  if [ -z "$mirror" ] && grep -q '^ID=debian' /etc/os-release; then
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -v security | head -n 1 || true)
  fi
  mirror=${mirror:-http://deb.debian.org/debian}
  mkdir -p "$folder"/apt/lists/partial "$folder"/apt/cache/archives/partial
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$folder/apt/unstable.list"
  local options=(
    -o "Dir::Etc::sourcelist=$folder/apt/unstable.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$folder/apt/lists"
    -o "Dir::Cache=$folder/apt/cache" -o APT::Get::List-Cleanup=0 -o "APT::Sandbox::User=$(id -un)"
  )
  apt-get -qq "${options[@]}" update
  (
    cd "$folder"
    apt-get -qq "${options[@]}" download "$@"
    for package in *.deb; do dpkg -x "$package" .; done
    rm -r ./*.deb apt
  )
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
