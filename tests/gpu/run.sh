#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the hardware tests of a bundle (tools/bundle) on a machine with at least two NVLink GPUs, against that machine's
# NCCL and Python packages. Prints one table and "N passed, N failed, N skipped"; logs and figures stay in the results.
# On a machine with one GPU two ranks share it: that shows whether results are right, but no times worth keeping.
#
#   run [--list] [--quick] [--only PATTERN]...
#   run --soak MINUTES [--seed N]
#
#   --only PATTERN     tests whose name matches the shell pattern
#   --quick            correctness of the main path, and short timings
#   --soak MINUTES     random programs alone, from seed N (1) on
#
#   LAMPREY_RESULTS       folder for the results (default: results beside this file)
#   LAMPREY_RUN_BUDGET    seconds for all tests (default 480): what does not fit is skipped
#   LAMPREY_RUN_TOPOLOGY  an hwloc XML file that stands for this machine, to rehearse with emulated libraries: set
#                         NCCL_LIBRARY and LD_LIBRARY_PATH to them
#   NCCL_LIBRARY          the libnccl.so.2 to use (default: PyTorch's, else the loader's)
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR
. "$here/surroundings.sh"

results=${LAMPREY_RESULTS:-$here/results}
budget=${LAMPREY_RUN_BUDGET:-480}
list=0
quick=0
only=()
soak_seconds=20
seed=
while [ "$#" -gt 0 ]; do
    case $1 in
        --list) list=1 ;;
        --quick) quick=1 ;;
        --only)
            [ "$#" -gt 1 ] || { echo "run: --only needs a pattern" >&2; exit 2; }
            only+=("$2")
            shift
            ;;
        --soak | --seed)
            [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || { echo "run: $1 needs a number" >&2; exit 2; }
            if [ "$1" = --seed ]; then
                seed=$2
            else
                soak_seconds=$(($2 * 60))
                budget=$((soak_seconds + 120))
                only=(soak_test)
            fi
            shift
            ;;
        -h | --help)
            sed -n '3,19s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *)
            echo "run: unknown option $1" >&2
            exit 2
            ;;
    esac
    shift
done

topology=$(readable_topology) || exit 2
clean_environment "$topology"
if [ "$list" = 0 ] && [ -z "$topology" ]; then
    share_one_gpu
fi

nccl=$(find_nccl)
if [ "$list" = 0 ]; then
    [ -n "$nccl" ] || say "run: no libnccl.so.2 found: set NCCL_LIBRARY (its tests will be skipped)"
    mkdir -p "$results/logs" || exit 1
    # What an earlier run left is not of today.
    rm -f "$results"/logs/*.log "$results"/{times.txt,order_cost.tsv,row_bench.tsv,counts.txt}
    : >"$results/summary.tsv"
    : >"$results/times.tsv"
    work=$(mktemp -d)
    trap 'stop_sharing; rm -rf "$work"' EXIT
    lib=$work/lib
    with_doors "$here/lib" "$lib"
    {
        say "date: $(date -u +%FT%TZ)"
        say "nccl: $(basename "$(readlink -f "$nccl")")"
        [ -z "$topology" ] || say "topology: $(basename "$topology")"
        cat "$here/bundle.txt"
        nvidia-smi --query-gpu=name,driver_version,clocks.sm --format=csv,noheader 2>&1
        nvidia-smi topo -m 2>&1
        [ -z "$python" ] || "$python" -c 'import torch; print("torch", torch.__version__, torch.cuda.nccl.version())' 2>&1
    } >"$results/machine.txt"
else
    work=/nowhere
    lib=/nowhere
fi
nccl_folder=$(dirname "${nccl:-/nowhere/x}")
export NCCL_LIBRARY=$nccl

passed=0
failed=0
skipped=0

wanted() {
    local pattern
    [ "${#only[@]}" -gt 0 ] || return 0
    for pattern in "${only[@]}"; do
        # shellcheck disable=SC2053 # a pattern on purpose
        [[ $1 == $pattern ]] && return 0
    done
    return 1
}

# record NAME STATUS PASSED FAILED SKIPPED SECONDS NOTE
record() {
    passed=$((passed + $3))
    failed=$((failed + $4))
    skipped=$((skipped + $5))
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$results/summary.tsv"
    printf '%-34s %-5s %5ss  %s\n' "$1" "$2" "$6" "$7"
}

# Sum of one counter over the processes of a log, and how many processes counted nothing.
counter() {
    awk -v name="$2=" '
        /lamprey stats: pid=/ {
            lines++
            for (i = 1; i <= NF; i++) {
                if (index($i, name) == 1) {
                    value = substr($i, length(name) + 1) + 0
                    sum += value
                    if (value == 0) { empty++ }
                }
            }
        }
        END { print sum + 0, empty + 0, lines + 0 }' "$1"
}

# try NAME LIMIT_S EXPECTATION COMMAND...: runs one test in a session of its own.
#   served: every process that loaded Lamprey was served; some: at least one; none: none, but it was loaded;
#   plain: no Lamprey in the process; any
try() {
    local name=$1 limit=$2 expect=$3 log pid status started seconds note="" served empty lines ok=1 cases
    shift 3
    wanted "$name" || return 0
    if [ "$list" = 1 ]; then
        say "$name"
        return 0
    fi
    if [ "$SECONDS" -ge "$budget" ]; then
        record "$name" skip 0 0 1 0 "no time left of $budget s"
        return 0
    fi
    log=$results/logs/$name.log
    started=$SECONDS
    setsid timeout --signal=TERM --kill-after=10 "$limit" "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    wait "$pid"
    status=$?
    # Whatever the test left behind is in its process group.
    kill -KILL -- "-$pid" 2>/dev/null
    seconds=$((SECONDS - started))
    read -r served empty lines < <(counter "$log" served)
    if [ "$status" = 77 ]; then
        record "$name" skip 0 0 1 "$seconds" "$(grep -m 1 skipped "$log")"
        return 0
    fi
    case $status in
        0) ;;
        124 | 137) ok=0; note="not done in $limit s" ;;
        *) ok=0; note="status $status" ;;
    esac
    [ "$lines" = 0 ] || note="${note:+$note, }served $served"
    if [ "$ok" = 1 ]; then
        case $expect in
            served) [ "$lines" -gt 0 ] && [ "$empty" = 0 ] || { ok=0; note="$note: expected every process served"; } ;;
            some) [ "$served" -gt 0 ] || { ok=0; note="$note: expected calls served"; } ;;
            none) [ "$lines" -gt 0 ] && [ "$served" = 0 ] || { ok=0; note="$note: expected Lamprey to stand aside"; } ;;
            plain) [ "$lines" = 0 ] || { ok=0; note="$note: Lamprey was not asked for"; } ;;
        esac
    fi
    # GoogleTest binaries count by case.
    cases=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
    if [ -n "$cases" ]; then
        local bad off
        bad=$(sed -n 's/^\[  FAILED  \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
        off=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$log" | tail -n 1)
        [ "$ok" = 1 ] || [ "${bad:-0}" -gt 0 ] || bad=1
        record "$name" "$([ "$ok" = 1 ] && say pass || say FAIL)" "$cases" "${bad:-0}" "${off:-0}" "$seconds" "$note"
    elif [ "$ok" = 1 ]; then
        record "$name" pass 1 0 0 "$seconds" "$note"
    else
        record "$name" FAIL 0 1 0 "$seconds" "$note"
    fi
    if [ "$ok" = 0 ]; then
        tail -n 5 "$log" | sed 's/^/    /'
    fi
}

# has_passed NAME: in this run
has_passed() {
    [ "$list" = 0 ] && awk -F '\t' -v name="$1" '$1 == name && $2 == "pass" { found = 1 } END { exit !found }' \
        "$results/summary.tsv"
}

# keep_times NAME CONFIGURATION: figures of a test's log.
keep_times() {
    has_passed "$1" || return 0
    awk -F '\t' -v OFS='\t' -v config="$2" '
        $1 == "result" && $6 != "-" { print "C program", $3, $2, config, $6 }
        $1 == "time" { print "PyTorch", $2, $4, config, $5 }' "$results/logs/$1.log" >>"$results/times.tsv"
}

# The counters show whether Lamprey is in a process, so all ask for them. Its folder is the first, for a Lamprey that is
# installed here must not be tested instead.
base=(env "LD_LIBRARY_PATH=$nccl_folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" LAMPREY_STATS=1)
doors=(env "LD_LIBRARY_PATH=$lib:$nccl_folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" LAMPREY_STATS=1)
with=("${doors[@]}" NCCL_PLUGIN=lamprey)

# Kernel and module tests that need a GPU, one process each, so none for MPS: a test that fails there breaks the next.
kernels=(env -u CUDA_MPS_PIPE_DIRECTORY -C "$here/tree" "LD_LIBRARY_PATH=$lib:$nccl_folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
for binary in "$here"/tests/*; do
    [ -x "$binary" ] && [ "$(basename "$binary")" != soak_test ] || continue
    try "$(basename "$binary")" 120 any "${kernels[@]}" "$binary"
done
try soak_test $((soak_seconds + 150)) any "${kernels[@]}" ${CUDA_MPS_PIPE_DIRECTORY:+CUDA_MPS_PIPE_DIRECTORY="$CUDA_MPS_PIPE_DIRECTORY"} LAMPREY_TEST_SECONDS="$soak_seconds" \
    LAMPREY_TEST_SEED="${seed:-1}" "$here/tests/soak_test"
has_passed soak_test && grep '^soak:' "$results/logs/soak_test.log"

# Correctness of the main path.
try demo_check 120 served "${with[@]}" "$here/programs/all_reduce_demo" --no-times --exact
try threads 60 served "${with[@]}" "$here/programs/threads"
try group 60 served "${with[@]}" "$here/programs/group"
try many_calls_group 60 served "${with[@]}" "$here/programs/many_calls_group"
try fused_all_reduce 60 served "${with[@]}" "$here/programs/fused_all_reduce" --rounds=50
try fused_workspace 60 served "${with[@]}" "$here/programs/fused_all_reduce" --rounds=50 --workspace
try dlsym_first 60 served "${with[@]}" "$here/programs/dlsym_first"
try graph_mix 60 served "${with[@]}" "$here/programs/graph_mix" --rounds=300
if [ -n "$python" ]; then
    try torch_check 120 served "${with[@]}" "$python" "$here/programs/torch_all_reduce.py" --no-times
fi
sweep_count=1048576
[ "$quick" = 0 ] || sweep_count=65536
try sweep 180 served "${with[@]}" "$here/programs/sweep" "--max-count=$sweep_count"

# Timings: NCCL as it comes, NCCL without the order between graphs and live calls, Lamprey.
rounds=25
[ "$quick" = 0 ] || rounds=10
demo=("$here/programs/all_reduce_demo" "--rounds=$rounds")
# The emulator is far slower.
[ -z "$topology" ] || demo+=(--max-bytes=65536 --calls-per-graph=8)
try demo_nccl 90 plain "${base[@]}" "${demo[@]}"
keep_times demo_nccl nccl
try demo_nccl_no_mixing 90 plain "${base[@]}" NCCL_GRAPH_MIXING_SUPPORT=0 "${demo[@]}"
keep_times demo_nccl_no_mixing nccl-no-mixing
try demo_lamprey 90 served "${with[@]}" "${demo[@]}"
keep_times demo_lamprey lamprey
if [ -n "$python" ]; then
    torch=("$python" "$here/programs/torch_all_reduce.py" --no-check "--rounds=$rounds")
    try torch_nccl 120 plain "${base[@]}" "${torch[@]}"
    keep_times torch_nccl nccl
    try torch_nccl_no_mixing 120 plain "${base[@]}" NCCL_GRAPH_MIXING_SUPPORT=0 "${torch[@]}"
    keep_times torch_nccl_no_mixing nccl-no-mixing
    try torch_lamprey 120 served "${with[@]}" "${torch[@]}"
    keep_times torch_lamprey lamprey
fi

# Training gives the same losses with and without.
if [ -n "$python" ]; then
    export CUBLAS_WORKSPACE_CONFIG=:4096:8
    try torch_training 120 served "${with[@]}" "$python" "$here/programs/torch_training.py"
    try plain_torch_training 120 plain "${base[@]}" "$python" "$here/programs/torch_training.py"
    if has_passed torch_training && has_passed plain_torch_training; then
        try torch_training_losses 10 any diff <(grep '^loss' "$results/logs/torch_training.log") \
            <(grep '^loss' "$results/logs/plain_torch_training.log")
    fi
fi

# A benchmark alone, for which the emulator is too slow.
[ -n "$topology" ] || try order_cost 60 any "${kernels[@]}" "$here/programs/order_cost"
if has_passed order_cost; then
    grep "^order" "$results/logs/order_cost.log" >"$results/order_cost.tsv"
fi
[ -n "$topology" ] || try row_bench 120 any "${kernels[@]}" "$here/programs/row_bench" --quick
if has_passed row_bench; then
    grep "^row" "$results/logs/row_bench.log" >"$results/row_bench.tsv"
fi
if [ "$quick" = 0 ]; then
    try demo_lamprey_pdl_off 90 served "${with[@]}" LAMPREY_PDL=off "${demo[@]}"
    keep_times demo_lamprey_pdl_off lamprey-pdl-off
    try demo_lamprey_pdl_signal 90 served "${with[@]}" LAMPREY_PDL=signal "${demo[@]}"
    keep_times demo_lamprey_pdl_signal lamprey-pdl-signal
fi

# Every door by itself.
door=("$here/programs/dlsym_first")
try door_tuner_name 60 served "${doors[@]}" NCCL_TUNER_PLUGIN=lamprey "${door[@]}"
if [ "$quick" = 0 ]; then
    try door_tuner_path 60 served "${doors[@]}" "NCCL_TUNER_PLUGIN=$lib/liblamprey.so" "${door[@]}"
    try door_env 60 served "${doors[@]}" NCCL_ENV_PLUGIN=lamprey "${door[@]}"
    try door_profiler 60 served "${doors[@]}" NCCL_PROFILER_PLUGIN=lamprey "${door[@]}"
    try door_net 60 served "${doors[@]}" NCCL_NET_PLUGIN=lamprey "${door[@]}"
    try door_preload 60 some "${base[@]}" "LD_PRELOAD=$lib/liblamprey.so" \
        "$here/programs/threads"
    try not_asked 60 plain "${doors[@]}" "${door[@]}"
fi

# Where Lamprey must stand aside, and the results must be right all the same.
try disabled 60 none "${with[@]}" LAMPREY_DISABLE=1 "${door[@]}"
if [ "$quick" = 0 ]; then
    try aside_p2p_disable 60 none "${with[@]}" NCCL_P2P_DISABLE=1 "${door[@]}"
    try aside_p2p_level 60 none "${with[@]}" NCCL_P2P_LEVEL=LOC "${door[@]}"
    try aside_check_pointers 60 none "${with[@]}" NCCL_CHECK_POINTERS=1 "${door[@]}"
    try aside_launch_order 60 none "${with[@]}" NCCL_LAUNCH_ORDER_IMPLICIT=1 "${door[@]}"
    # The plain library must pass the same checks, or they say nothing about us.
    try plain_graph_mix 60 plain "${base[@]}" "$here/programs/graph_mix" --rounds=100
    try plain_sweep 120 plain "${base[@]}" "$here/programs/sweep" --max-count=16384
fi

# Frameworks.
if [ -n "$python" ]; then
    try ctypes_fused 90 served "${with[@]}" "$python" -B "$here/programs/ctypes_fused.py"
    try ctypes_all_reduce 90 served "${with[@]}" "$python" "$here/programs/ctypes_all_reduce.py"
    if [ "$quick" = 0 ]; then
        try cupy_all_reduce 90 served "${with[@]}" "$python" "$here/programs/cupy_all_reduce.py"
        # Newer JAX has all-reduces of its own for what is small, and older JAX doesn't know the flag.
        flags=(XLA_FLAGS=--xla_gpu_experimental_use_collective_kernels=-ALL_REDUCE)
        [ "$list" = 1 ] || ! wanted jax_psum ||
            env "${flags[@]}" "$python" -c 'import jax; jax.devices()' >/dev/null 2>&1 || flags=()
        try jax_psum 120 served "${with[@]}" "${flags[@]}" "$python" "$here/programs/jax_psum.py"
    fi
fi

# Order and results in the long run. The emulator has no such order to look at, and no kernels but the product's.
if [ "$quick" = 0 ] && [ -z "$topology" ]; then
    try pdl_order 90 any "${kernels[@]}" "$here/programs/pdl_order"
    try soak_calls 60 any "${kernels[@]}" "$here/programs/soak_calls" --seconds=20
fi

# Memory errors in the kernels, with 2, 3 and 8 ranks: kernels_test numbers its worlds 2, 3, 4 ... from 0; with rows 2
# and 3.
if [ "$quick" = 0 ]; then
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    for binary in "$here"/tests/*kernel*; do
        if [ -x "$binary" ] && [ -n "$sanitizer" ]; then
            # One process drives all GPUs here; the demo below has a process per GPU.
            try "memcheck_$(basename "$binary")" 120 any "${kernels[@]}" \
                "$sanitizer" --tool memcheck --error-exitcode 9 "$binary" \
                '--gtest_filter=Ranks/Kernels.*/0:Ranks/Kernels.*/1:Ranks/Kernels.*/6:TwoRanks.*:Worlds/RowKernels.*/0:Worlds/RowKernels.*/1'
        fi
    done
    filter=
    for name in ReduceEveryCount 'KeepRoundsApart*' NormaliseEveryShape 'Quantise*'; do
        filter+="*.$name/0:*.$name/1:"
    done
    for tool in racecheck initcheck; do
        for binary in kernels_test row_kernels_test; do
            [ -z "$sanitizer" ] || try "${tool}_$binary" 90 any "${kernels[@]}" \
                "$sanitizer" --tool "$tool" --error-exitcode 9 "$here/tests/$binary" "--gtest_filter=$filter"
        done
    done
    # NCCL asks for kernels that it wasn't built with, and takes the error as the answer.
    [ -z "$sanitizer" ] || try memcheck_demo 120 served "${with[@]}" "$sanitizer" --tool memcheck \
        --report-api-errors no --target-processes all --error-exitcode 9 "$here/programs/all_reduce_demo" --no-times --exact
fi

[ "$list" = 0 ] || exit 0

# One table of the figures: medians, us per call, slowest rank.
if [ -s "$results/times.tsv" ]; then
    [ -z "$topology" ] || printf '\n%s\n' "a rehearsal in the emulator: these figures mean nothing" |
        tee "$results/times.txt"
    awk -F '\t' '
        {
            row = $1 "\t" $2 "\t" $3
            if (!(row in seen)) { seen[row] = 1; rows[++count] = row }
            if (!($4 in column)) { column[$4] = 1; columns[++width] = $4 }
            value[row, $4] = $5
        }
        END {
            printf "\n%-10s %-6s %9s", "us a call", "", "bytes"
            for (c = 1; c <= width; c++) printf " %18s", columns[c]
            printf " %9s\n", "speed-up"
            for (r = 1; r <= count; r++) {
                split(rows[r], part, "\t")
                printf "%-10s %-6s %9d", part[1], part[2], part[3]
                for (c = 1; c <= width; c++) printf " %18s", (rows[r], columns[c]) in value ? value[rows[r], columns[c]] : "-"
                if ((rows[r], "nccl") in value && (rows[r], "lamprey") in value)
                    printf " %8.2fx", value[rows[r], "nccl"] / value[rows[r], "lamprey"]
                printf "\n"
            }
        }' "$results/times.tsv" | tee -a "$results/times.txt"
fi
say ""
say "results: $results"
say "$passed passed, $failed failed, $skipped skipped" | tee "$results/counts.txt"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
