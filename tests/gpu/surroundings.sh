# SPDX-License-Identifier: Apache-2.0
# For scripts of a bundle: the variables that a measurement must not inherit, the machine's NCCL, and the library as it
# is installed. To be sourced.
# shellcheck shell=bash

say() {
    printf '%s\n' "$*"
}

# readable_topology: LAMPREY_RUN_TOPOLOGY's path, "" without one; fails where it can't be read.
readable_topology() {
    [ -n "${LAMPREY_RUN_TOPOLOGY:-}" ] || return 0
    if [ ! -r "$LAMPREY_RUN_TOPOLOGY" ]; then
        say "LAMPREY_RUN_TOPOLOGY=$LAMPREY_RUN_TOPOLOGY can't be read" >&2
        return 2
    fi
    readlink -f "$LAMPREY_RUN_TOPOLOGY"
}

# clean_environment [TOPOLOGY]: NVLink multicast stays off, whatever the machine's defaults are; no plugin and no setting
# of the caller's remains, but for the emulator's.
clean_environment() {
    local name
    export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
    export PYTHONDONTWRITEBYTECODE=1
    unset NCCL_PLUGIN NCCL_TUNER_PLUGIN NCCL_ENV_PLUGIN NCCL_PROFILER_PLUGIN NCCL_NET_PLUGIN LD_PRELOAD \
        NCCL_GRAPH_MIXING_SUPPORT NCCL_SYM_NOWIN_ENABLE NCCL_ALGO NCCL_PROTO
    for name in ${!LAMPREY_*}; do
        case $name in LAMPREY_EMULATOR_*) ;; *) unset "$name" ;; esac
    done
    [ -z "${1:-}" ] || export LAMPREY_TOPOLOGY=$1
}

python=$(command -v python3 || true)

# The libnccl.so.2 to use: NCCL_LIBRARY, else PyTorch's, else the loader's; nothing where there is none.
find_nccl() {
    local path
    if [ -n "${NCCL_LIBRARY:-}" ]; then
        say "$NCCL_LIBRARY"
        return
    fi
    if [ -n "$python" ]; then
        path=$("$python" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>/dev/null)/lib/libnccl.so.2
        [ -e "$path" ] && { say "$path"; return; }
    fi
    path=$(ldconfig -p 2>/dev/null | sed -n 's/.*libnccl\.so\.2 .*=> //p' | head -n 1)
    [ -n "$path" ] && { say "$path"; return; }
    for path in "${NCCL_HOME:-/nowhere}"/lib*/libnccl.so.2 "${CUDA_HOME:-/usr/local/cuda}"/lib*/libnccl.so.2; do
        [ -e "$path" ] && { say "$path"; return; }
    done
}

# with_doors FROM TO: a copy of the library's folder with the door names, which are links and can't be in a bundle.
with_doors() {
    local door
    cp -r "$1" "$2"
    for door in tuner env profiler net; do
        ln -s liblamprey.so "$2/libnccl-$door-lamprey.so"
    done
}

# share_one_gpu: where there is one GPU, lets two ranks have it. Through MPS their kernels run side by side; without it the
# GPU goes from one process to the other, and a call takes milliseconds.
share_one_gpu() {
    sharing=no
    [ "$(nvidia-smi -L 2>/dev/null | grep -c '^GPU ')" = 1 ] || return 0
    sharing="by turns"
    export PROGRAM_SHARE_GPU=1 LAMPREY_SHARE_GPU=1
    CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d)
    CUDA_MPS_LOG_DIRECTORY=$CUDA_MPS_PIPE_DIRECTORY
    export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
    if nvidia-cuda-mps-control -d >/dev/null 2>&1; then
        sharing="through MPS"
    fi
    say "one GPU: two ranks share it $sharing"
}

stop_sharing() {
    [ "${sharing:-no}" != no ] || return 0
    [ "$sharing" != "through MPS" ] || echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1
    rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
}
