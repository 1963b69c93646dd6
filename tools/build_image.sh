#!/usr/bin/env bash
# Build a target of the Dockerfile with buildah, where there is neither a container engine nor a registry, and run it.
#
#   tools/build_image.sh TARGET [BUILDAH OPTION...]     # cpu or gpu; e.g. --volume /etc/pip.conf:/etc/pip.conf:ro
#
# A Debian root that debootstrap makes stands in for the base image. As root, with buildah and debootstrap installed, and
# room for the image (5 GB for the CPU, 20 GB for the GPU). The image is localhost/asymgrpo:TARGET of buildah's store.
set -euo pipefail

target=$1
shift
base=localhost/asymgrpo-python:bookworm
cd "$(dirname "$0")/.."
# Chroot isolation and plain folders for layers: neither takes a privilege beyond root's.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs

if ! buildah inspect --type image "$base" > /dev/null 2>&1; then
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,ca-certificates bookworm "$root" > /dev/null
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$root" /
  buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  buildah commit --quiet --rm "$container" "$base"
fi

buildah build --layers=false --pull-never --target "$target" --build-arg PYTHON_IMAGE="$base" \
  --tag "localhost/asymgrpo:$target" "$@" .
container=$(buildah from --pull-never "localhost/asymgrpo:$target")
buildah run "$container" -- asymgrpo --version
if [ "$target" = gpu ]; then
  # A kernel of FlashInfer's for a Blackwell GPU, compiled and linked as on its first use there; it takes no GPU. An empty
  # library stands in for the driver's.
  buildah run "$container" -- sh -c 'mkdir /tmp/driver && c++ -shared -Wl,-soname,libcuda.so.1 -o /tmp/driver/libcuda.so -x c++ /dev/null'
  buildah run --env FLASHINFER_CUDA_ARCH_LIST=10.0a --env FLASHINFER_EXTRA_LDFLAGS=-L/tmp/driver "$container" -- python -c '
import os, subprocess
from asymgrpo_app.runtime.cuda_toolkit import provide_cuda_home
provide_cuda_home()
print(subprocess.check_output([os.environ["CUDA_HOME"] + "/bin/nvcc", "--version"], text=True).splitlines()[-2])
from flashinfer.jit.norm import gen_norm_module
module = gen_norm_module()
module.build(verbose=False)
print("compiled and linked", module.jit_library_path.name, module.jit_library_path.stat().st_size, "bytes")'
fi
buildah inspect --format '{{.FromImageID}}' "$container"
buildah rm "$container" > /dev/null
