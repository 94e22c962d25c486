#!/usr/bin/env bash
# The peer of `slipway release`: the same tools on the same source, one after the other, with no
# journal, no plan, no artifacts, no way back. Arguments come from tests/bench/release.py.
set -euo pipefail
source_dir=$1 work=$2 tools=$3 pg_bin=$4 admin_url=$5 redis_url=$6 dynamic=$7 web=$8 host=$9 checks=${10}
name=shell_$$
export PATH="$tools:$pg_bin:$PATH" PYTHONDONTWRITEBYTECODE=
rm -rf "$work" && mkdir -p "$work/bundle"
database() { createdb --maintenance-db="$admin_url" "$1" && echo "${admin_url%/*}/$1"; }
wait_for() { for _ in $(seq 300); do curl -fs -o /dev/null "$@" && return; sleep 0.1; done; return 1; }

# build
cp -r "$source_dir" "$work/bundle/app"
uv -q venv --relocatable "$work/bundle/venv"
uv -q pip install --python "$work/bundle/venv" --require-hashes -r "$source_dir/requirements.lock"
tar -C "$work/bundle" -c . | gzip -1 > "$work/bundle.tar.gz"
sha256sum "$work/bundle.tar.gz" > "$work/digest"
app=$work/bundle/app run=$work/bundle/venv/bin

# test
uv -q venv "$work/test"
uv -q pip install --python "$work/test" --require-hashes -r "$source_dir/requirements.lock" -r "$source_dir/requirements-test.lock"
cd "$app"
"$work/test/bin/python" -m pytest -q tests/unit
DATABASE_URL=$(database "${name}_i") REDIS_URL=$redis_url "$work/test/bin/python" -m pytest -q tests/integration
url=$(database "${name}_c")
PATH="$run:$PATH" DATABASE_URL=$url alembic upgrade head
DATABASE_URL=$url "$run/python" -m diet_game.seed
port=$((20000 + RANDOM % 5000))
base=http://127.0.0.1:$port
PORT=$port DATABASE_URL=$url REDIS_URL=$redis_url "$run/python" -m diet_game > "$work/candidate.log" 2>&1 &
candidate=$!
trap 'kill $candidate 2>/dev/null || true' EXIT
wait_for "$base/readyz"
BASE_URL=$base "$work/test/bin/python" -m pytest -q tests/end_to_end

# scan
bandit -q -r diet_game migrations -ll
detect-secrets scan . > "$work/secrets.json"
hadolint Containerfile
schemathesis run "$base/openapi.json" --max-examples 25 --phases examples,coverage,fuzzing --seed 1 --generation-database none --suppress-health-check all --continue-on-failure --checks $checks > "$work/fuzz.log"
kill "$candidate" && wait "$candidate" || true

# deploy
url=$(database "${name}_p")
PATH="$run:$PATH" DATABASE_URL=$url alembic upgrade head
DATABASE_URL=$url "$run/python" -m diet_game.seed
servers=
for replica in 1 2; do
  port=$((25000 + (RANDOM % 2500) * 2 + replica))
  PORT=$port DATABASE_URL=$url REDIS_URL=$redis_url setsid "$run/python" -m diet_game > "$work/$replica.log" 2>&1 &
  echo $! >> "$work/pids"
  servers="$servers{\"url\":\"http://127.0.0.1:$port\"},"
  ports="${ports:-} $port"
done
for port in $ports; do wait_for "http://127.0.0.1:$port/readyz"; done
cat > "$work/route.yml" <<ROUTE
{"http":{"routers":{"$name":{"rule":"Host(\`$host\`)","entryPoints":["web"],"service":"$name"}},"services":{"$name":{"loadBalancer":{"servers":[${servers%,}]}}}}}
ROUTE
mv "$work/route.yml" "$dynamic/$name.yml"
echo "$dynamic/$name.yml" > "$work/route"

# verify
wait_for -H "Host: $host" "$web/healthz"
curl -fs -H "Host: $host" "$web/version" | grep -q diet-game
