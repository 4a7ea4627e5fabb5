#!/bin/sh
# Segment every inputs/NAME.npz by the sentences in it and write outputs/NAME.npz, as the CVPR 2025 text-guided track
# calls it: sh predict.sh. Exit code 0: all cases done; 1: some failed, which outputs/failures.csv names; the others
# are written all the same. Needs no network.
#
# Variables, with what the image sets:
#   INPUTS   folder of the cases      /workspace/inputs
#   OUTPUTS  folder of the results    /workspace/outputs
#   BUNDLE   the bundle               the bundle/ beside this script
#   WEIGHTS  shipped or published     published where all of its files are in the bundle's models/, else shipped
#   PYTHON   interpreter              python
# Arguments are handed to the run: sh predict.sh --device cpu
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
: "${INPUTS:=/workspace/inputs}" "${OUTPUTS:=/workspace/outputs}" "${BUNDLE:=$here/bundle}" "${PYTHON:=python}"

fail() {
    echo "error: $1" >&2
    exit 1
}

is_published() {
    for name in medal_s_coarse.pt medal_s_fine.pt medal_s_text_embeddings.safetensors; do
        [ -f "$BUNDLE/models/$name" ] || return 1
    done
}

[ -d "$INPUTS" ] || fail "no folder $INPUTS: mount the cases there, or set INPUTS"
[ -f "$BUNDLE/configs/challenge.json" ] || fail "no bundle in $BUNDLE: set BUNDLE to the bundle's folder"
mkdir -p "$OUTPUTS" || fail "cannot make $OUTPUTS: mount a folder there that user $(id -u) may write to"
INPUTS=$(cd "$INPUTS" && pwd)
OUTPUTS=$(cd "$OUTPUTS" && pwd)

[ -n "${WEIGHTS:-}" ] || { is_published && WEIGHTS=published || WEIGHTS=shipped; }
configs="'configs/inference.json','configs/batch_inference.json'"
case $WEIGHTS in
    shipped) ;;
    published)
        is_published || fail "no published weights in $BUNDLE/models: import them, or set WEIGHTS=shipped"
        configs="$configs,'configs/published.json'"
        ;;
    *) fail "WEIGHTS is shipped or published, got '$WEIGHTS'" ;;
esac
echo "Medal S with the $WEIGHTS weights: $INPUTS to $OUTPUTS" >&2

# Nothing is fetched at run time, also where there is a network, and nothing is written outside of OUTPUTS.
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR="${TMPDIR:-/tmp}/matplotlib"
case $PYTHON in /*) ;; */*) PYTHON=$PWD/$PYTHON ;; esac # seen from where this was called
cd "$BUNDLE"
exec "$PYTHON" -m monai.bundle run --config_file "[$configs,'configs/challenge.json']" \
    --images "$INPUTS" --output_dir "$OUTPUTS" --progress false "$@"
