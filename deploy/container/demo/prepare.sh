#!/bin/sh
# Everything that people do before a study runs, in one place and without telephone calls: for a demonstration only.
set -eu
here=$(dirname "$0")
hospitals="st-anna nordklinik lakeside"
cd "$FOLDER"
if [ -e ready ]; then exit 0; fi
secagg-certs init-ca demo --out ca
secagg-certs issue secagg://demo/coordinator/main --ca ca --out coordinator/identity --dns coordinator
cp "$here/plan.toml" "$here/coordinator.toml" coordinator/
secagg-node init-model --plan coordinator/plan.toml --out coordinator/start.safetensors
index=0
for name in $hospitals; do
    secagg-certs issue "secagg://demo/hospital/$name" --ca ca --out "$name/identity"
    cp "$here/node.toml" "$name/"
    python -c "from pathlib import Path; from study import synthetic; synthetic.write_cohort(Path('$name/data'), $index, 8, 5)"
    index=$((index + 1))
done
for name in coordinator $hospitals; do
    for other in $hospitals; do
        if [ "$other" != "$name" ]; then
            secagg-certs peers "$other/identity" --out "$name/peers.toml" --add --unconfirmed
        fi
    done
done
for name in $hospitals; do
    secagg-node approve --config "$name/node.toml" --plan coordinator/plan.toml --by "Demonstration" --reason "synthetic scans"
done
touch ready
