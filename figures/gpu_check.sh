#!/bin/bash
# Does everything work on a GPU, and how fast? About 15 minutes; a part that fails ends alone.
#
#   figures/gpu_check.sh                     all five parts
#   figures/gpu_check.sh 1 2                 some of them
#   OFFICIAL=CLONE figures/gpu_check.sh 3    beside the official code
#   TINY=1 figures/gpu_check.sh              the script itself, with tiny sizes, on a CPU
#
# Leaves report.txt and a few sheets in $OUT, or in runs/gpu; runs lie in a temporary folder.
cd "$(dirname "$0")/.." || exit 1
out=$(realpath -m "${OUT:-runs/gpu}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
failed=0

if [ -n "$TINY" ]; then
  small="--size 16 --model Ti/8 --depth 1 --width 32 --heads 2 --context-start 0 --batch-size 4"
  steps=8 save=2 speed="--model Ti/16 --size 32 --batch 2 --steps 2 --repeats 3" images=6
  base="Ti/8 --size 16 --depth 2 --width 32 --heads 2" batch=4 compile="" long=2 short=4
else
  small="" steps=200 save=20 speed="--model B/16 --size 256 --batch 128" images=20000
  base="B/16 --size 64" batch=64 compile="--compile" long=4000 short=2000
fi

part() {  # part SECONDS COMMAND...: its output, how it ended and how long it took go to the report
  local limit=$1 start=$SECONDS
  shift
  echo "== $*" | tee -a "$out/report.txt"
  timeout "$limit" "$@" > "$work/log" 2>&1
  local code=$?
  tr '\r' '\n' < "$work/log" | grep -v '%|' | tail -n 40 >> "$out/report.txt"
  echo "-- exit code $code after $((SECONDS - start)) s" | tee -a "$out/report.txt"
  [ $code -eq 0 ] || failed=1
}

train() { python jit.py train "$@"; }
export -f train

last_line() { tail -n 1 "$work/$1/log.jsonl" >> "$out/report.txt"; }

killed_and_whole() {  # the same run whole, and killed in between
  train $small --steps "$steps" --save-every "$save" --log-every 1 --out "$work/whole" || return
  train $small --steps "$steps" --save-every "$save" --log-every 1 --out "$work/killed" &
  until [ -f "$work/killed/checkpoint-last.pth" ] || ! kill -0 $! 2> /dev/null; do sleep 0.1; done
  kill -9 $!
  train $small --steps "$steps" --save-every "$save" --log-every 1 --out "$work/killed" || return
  python - "$work" <<'END'
import json, sys
def losses(run):
    lines = map(json.loads, open(f"{sys.argv[1]}/{run}/log.jsonl"))
    return {line["step"]: line["loss"] for line in lines}
whole, killed = losses("whole"), losses("killed")
assert whole.keys() == killed.keys(), "steps are missing"
difference = max(abs(whole[i] - killed[i]) for i in whole)
print("largest difference of a step's loss, whole and killed:", difference)
END
}

make_photos() {  # noise of many scales, as JPEGs of 500 x 375
  python - "$work/photos" "$images" <<'END'
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from PIL import Image
folder, n = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
def make(i):
    rng = np.random.default_rng(i)
    image = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    image.save(folder / f"{i}.jpg", quality=90)
with ThreadPoolExecutor() as pool:
    list(pool.map(make, range(n)))
END
}

export -f killed_and_whole make_photos
export out work small steps save images
for number in ${@:-1 2 3 4 5}; do
  case $number in
  1) [ -n "$TINY" ] || part 150 python -m pytest -q -x
     part 120 bash -c killed_and_whole ;;
  2) for flag in "" $compile; do
       part 150 bash -c "train $small --steps $short --out $work/default$flag $flag"
       last_line "default$flag"
       cp "$work/default$flag"/samples-*"$short".png "$out/default$flag.png"
     done ;;
  3) for flag in "" $compile; do
       part 200 python figures/speed.py $speed $flag ${OFFICIAL:+--official "$OFFICIAL"}
     done ;;
  4) part 60 bash -c make_photos
     for data in shapes "$work/photos"; do  # does the input keep up?
       part 90 bash -c "train --model ${base/64/256} --batch-size $batch --steps 60 --data $data --out $work/${data##*/}-run $compile"
       last_line "${data##*/}-run"
     done ;;
  5) for pred in x eps v; do  # the paper's ratio with the paper's network: 768 wide, 768 numbers
       part 150 bash -c "train --model $base --bottleneck 0 --context-tokens 0 --pred $pred \
         --steps $long --batch-size $batch --lr 4e-4 --cooldown 1 --out $work/$pred $compile"
       last_line $pred
       cp "$work/$pred"/samples-*"$long".png "$out/ratio-$pred.png"
     done ;;
  esac
done
exit $failed
