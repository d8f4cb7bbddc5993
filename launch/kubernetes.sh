#!/usr/bin/env bash
# Renders an overlay of k8s/, checks it, says what it creates, applies it and follows the run's log.
#   bash launch/kubernetes.sh cpu-demo --name=first --image=ME/distgan:0.1.0-cpu
#   bash launch/kubernetes.sh horovod --name=birds --workers=4 --gpus=8 --with=spot --with=wandb-online -- --preset=cifar10-dcgan
#   bash launch/kubernetes.sh multiworker --dry_run        prints the manifests; needs no cluster
# --name and every line of the overlay's settings.yaml (image, workers, gpus, cpu, memory, runs, data, ...) are options;
# --with mixes in a component; --namespace and --context are kubectl's. Words behind -- are distgan's flags, in place of the
# overlay's own.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
wait_seconds=600

missing() {
  echo "kubernetes.sh: $*" >&2
  exit 2
}

overlay="${1:-}"
overlays="$(ls "$root/k8s/overlays" | paste -sd ' ')"
[ -n "$overlay" ] || missing "usage: bash launch/kubernetes.sh OVERLAY [--name=NAME] [--image=IMAGE] [--dry_run] [-- --preset=P ...]; overlays: $overlays"
[ -d "$root/k8s/overlays/$overlay" ] || missing "there is no overlay $overlay; there are $overlays"
shift
kubectl=(kubectl) components=() settings=() dry_run=0
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case "$1" in
    --dry_run) dry_run=1 ;;
    --namespace=?* | --context=?*) kubectl+=("$1") ;;
    --with=*)
      [ -d "$root/k8s/components/${1#--with=}" ] || missing "$1: there is no such component; there are $(ls "$root/k8s/components" | paste -sd ' ')"
      components+=("${1#--with=}")
      ;;
    --?*=*) settings+=("$1") ;;
    *) missing "$1 is not --OPTION=VALUE, --dry_run or --" ;;
  esac
  shift
done
[ $# = 0 ] || shift
command -v kubectl >/dev/null || missing "kubectl is missing: install it (1.27 or newer)"
python="${PYTHON:-python3}"
[ ! -x "$root/.venv/bin/python" ] || python="$root/.venv/bin/python"
"$python" -c 'import yaml' 2>/dev/null || missing "$python has no PyYAML: $python -m pip install pyyaml"
# A mistake in a flag is told here rather than by pods, where distgan is installed.
! command -v distgan >/dev/null || distgan train "$@" --help >/dev/null

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cp -R "$root/k8s" "$work/k8s"
"$python" - "$work/k8s/overlays/$overlay/settings.yaml" "$(printf '%s\n' "$@")" "${settings[@]}" <<'PYTHON' || exit 2
import sys, yaml
path, flags, *options = sys.argv[1:]
with open(path) as file:
    settings = yaml.safe_load(file)
data = settings["data"]
for option in options:
    name, _, value = option[2:].partition("=")
    if name == "name":
        settings["metadata"]["name"] = value
    elif name in data and name != "flags.txt":
        data[name] = value
    else:
        sys.exit(f"kubernetes.sh: --{name} is not one of --name, --{', --'.join(sorted(data.keys() - {'flags.txt'}))}")
data["flags.txt"] = flags + "\n" if flags else data["flags.txt"]
with open(path, "w") as file:
    yaml.safe_dump(settings, file)
PYTHON
mkdir "$work/k8s/rendered"
{
  echo "resources: [../overlays/$overlay]"
  echo "components: [$(printf '../components/%s,' ${components[@]+"${components[@]}"} | sed 's/,$//; s|^\.\./components/$||')]"
} >"$work/k8s/rendered/kustomization.yaml"
kubectl kustomize "$work/k8s/rendered" >"$work/manifests.yaml"
"$python" "$root/k8s/check.py" <"$work/manifests.yaml"

read -r kind name pod <<<"$("$python" - "$work/manifests.yaml" <<'PYTHON'
import sys, yaml
with open(sys.argv[1]) as file:
    objects = list(yaml.safe_load_all(file))
job = next(each for each in objects if each["kind"] in ("Job", "JobSet", "MPIJob"))
for each in objects:
    print(f"kubernetes.sh: creates {each['kind']} {each['metadata']['name']}", file=sys.stderr)
instance = f"app.kubernetes.io/instance={job['metadata']['name']}"
launcher = f"{instance},app.kubernetes.io/component=launcher"
first = f"{instance},batch.kubernetes.io/job-completion-index=0"
indexed = job["kind"] == "JobSet" or job["spec"].get("completionMode") == "Indexed"
print(job["kind"].lower(), job["metadata"]["name"], launcher if job["kind"] == "MPIJob" else first if indexed else instance)
PYTHON
)"
how="kubernetes.sh: to stop the run: ${kubectl[*]} delete $kind $name (it saves first); to go on: this command again
kubernetes.sh: to remove what is left: ${kubectl[*]} delete service,configmap,networkpolicy,poddisruptionbudget -l app.kubernetes.io/instance=$name"
if [ $dry_run = 1 ]; then
  echo "$how" >&2
  cat "$work/manifests.yaml"
  exit
fi
"${kubectl[@]}" apply -f "$work/manifests.yaml"
echo "$how" >&2

# The primary's log; it ends with the pod, and with the pod's exit code.
phase() { "${kubectl[@]}" get pods -l "$pod" --sort-by=.metadata.creationTimestamp -o 'jsonpath={.items[-1:].status.phase}'; }
end=$((SECONDS + wait_seconds))
until [[ "$(phase)" =~ Running|Succeeded|Failed ]]; do
  [ $SECONDS -lt $end ] || missing "no pod ($pod) runs after $wait_seconds s; see ${kubectl[*]} describe $kind,pods -l app.kubernetes.io/instance=$name"
  sleep 2
done
"${kubectl[@]}" logs --follow --selector="$pod" --tail=-1
code="$("${kubectl[@]}" get pods -l "$pod" --sort-by=.metadata.creationTimestamp -o 'jsonpath={.items[-1:].status.containerStatuses[0].state.terminated.exitCode}')"
echo "kubernetes.sh: $kind $name: the pod ended with exit code ${code:-unknown}" >&2
exit "${code:-1}"
