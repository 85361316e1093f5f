#!/usr/bin/env bash
# VidBridge-R1 from the released data to the table of the paper, one step after the other. Each can be run by itself:
#
#     bash experiments/vidbridge_7b.sh [all | check | plan | judge | train | evaluate | table]
#
# It needs 8 GPUs of 80 GB for the policy, a server with a language model as judge, and on disk the released rows, their
# videos, and the benchmarks where conf/benchmark/*.yaml look for them. It installs and downloads nothing. `DRY_RUN=1` prints the commands and runs none.
# Never run to its end by us: no GPU of this size was at hand. Its commands are composed by tests/test_docs.py.
set -euo pipefail

# -- what is yours ----------------------------------------------------------------------------------------------------
MODEL=${MODEL:-Qwen/Qwen2.5-VL-7B-Instruct}       # a hub id or a folder
ROWS=${ROWS:-data/vidbridge_r1/train.jsonl}       # the released rows of all four tasks
VIDEOS=${VIDEOS:-data/vidbridge_r1/videos}        # what the paths in them start from; see also data.video_prefix
JUDGE_URL=${JUDGE_URL:-http://127.0.0.1:8000/v1}  # vllm serve Qwen/Qwen2.5-72B-Instruct --tensor-parallel-size 4, elsewhere
JUDGE_MODEL=${JUDGE_MODEL:-Qwen/Qwen2.5-72B-Instruct}
RANKS=${RANKS:-8}
OUT=${OUT:-outputs/vidbridge_7b}
PYTHON=${PYTHON:-.venv/bin/python}

DATA=(data=vidbridge_r1 "data.files.train=$ROWS" "data.root=$VIDEOS")
JUDGE=(judge=openai "judge.answers.base_url=$JUDGE_URL" "judge.answers.model=$JUDGE_MODEL")
RUN=(experiment=vidbridge_7b "model.path=$MODEL" "nproc=$RANKS" "${DATA[@]}" "${JUDGE[@]}")

run() {
    echo "+ $*"
    [ -n "${DRY_RUN:-}" ] || "$@"
}

# -- the steps --------------------------------------------------------------------------------------------------------
check() {  # every row and video is read; every assumption about the weights is tried on them
    run "$PYTHON" build_data.py check "${DATA[@]}" model=qwen2_5_vl_7b "model.path=$MODEL"
    run "$PYTHON" build_data.py preview "${DATA[@]}" model=qwen2_5_vl_7b "model.path=$MODEL"
    run "$PYTHON" -m vidbridge.check_model model=qwen2_5_vl_7b "model.path=$MODEL" "${DATA[@]}"
}

plan() {  # does it fit, and what does a step cost?
    run "$PYTHON" train.py "${RUN[@]}" plan=true
}

judge() {  # a run of every stage once, before which the judge is asked about gold answers: is it there, and is it strict?
    run "$PYTHON" train.py "${RUN[@]}" debug=smoke "hydra.run.dir=$OUT/smoke"
}

train() {  # one pass over 10,800 rows, 338 steps; started again, it goes on
    run "$PYTHON" train.py "${RUN[@]}" resume=auto "hydra.run.dir=$OUT/proxy"
}

evaluate() {  # the trained model and the one it started from: held-out rows, then the paper's benchmarks
    for benchmark in held_out mvbench video_mme longvideobench next_qa mmvu intent_qa dream_1k; do
        for name in proxy base; do
            subject=("checkpoint=$OUT/proxy")
            [ "$name" = base ] && subject=("checkpoint=$MODEL" model=qwen2_5_vl_7b "${DATA[@]}")
            run "$PYTHON" evaluate.py "${subject[@]}" "benchmark=$benchmark" "nproc=$RANKS" "${JUDGE[@]}" \
                resume=auto "hydra.run.dir=$OUT/$name-$benchmark"
        done
    done
}

table() {  # what each evaluation earned, with its interval, beside the paper's numbers
    run "$PYTHON" -m experiments.paper_table "$OUT"
}

for step in $([ "${1:-all}" = all ] && echo check plan judge train evaluate table || echo "$1"); do
    "$step"
done
