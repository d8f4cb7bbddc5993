"""The fields of MPIJobs and JobSets that the manifests use, from the operators' documented types: nothing else passes.

MPIJob: kubeflow/mpi-operator, v2beta1 (0.8.2), with the words that its documentation allows where its own schema takes any.
JobSet: kubernetes-sigs/jobset, v1alpha2. The Jobs and pods within are held against Kubernetes' own schemas, see `inner`.
"""


def _object(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _words(*allowed):
    return {"type": "string", "enum": list(allowed)}


def _list(items, least=1):
    return {"type": "array", "items": items, "minItems": least}


_TEXT = {"type": "string", "minLength": 1}
_SWITCH = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
_POSITIVE = _COUNT | {"minimum": 1}
_ANYTHING = {"type": "object"}
_METADATA = _object(["name"], name=_TEXT, labels={"type": "object", "additionalProperties": _TEXT})


def _replicas(**replicas):
    return _object(
        ["template"], replicas=_POSITIVE | replicas, restartPolicy=_words("Never", "OnFailure"), template=_ANYTHING
    )


MPI_JOB = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "kubeflow.org/v2beta1"},
    kind={"const": "MPIJob"},
    metadata=_METADATA,
    spec=_object(
        ["mpiReplicaSpecs"],
        mpiImplementation=_words("OpenMPI", "Intel", "MPICH"),
        slotsPerWorker=_POSITIVE,
        sshAuthMountPath=_TEXT,
        launcherCreationPolicy=_words("AtStartup", "WaitForWorkersReady"),
        runPolicy=_object(
            cleanPodPolicy=_words("None", "Running", "All"),
            backoffLimit=_COUNT,
            ttlSecondsAfterFinished=_COUNT,
            suspend=_SWITCH,
        ),
        mpiReplicaSpecs=_object(["Launcher", "Worker"], Launcher=_replicas(maximum=1), Worker=_replicas()),
    ),
)
JOB_SET = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_METADATA,
    spec=_object(
        ["replicatedJobs"],
        ttlSecondsAfterFinished=_COUNT,
        suspend=_SWITCH,
        network=_object(enableDNSHostnames=_SWITCH, publishNotReadyAddresses=_SWITCH),
        failurePolicy=_object(
            maxRestarts=_COUNT,
            restartStrategy=_words("Recreate", "BlockingRecreate", "InPlaceRestart"),
            rules=_list(
                _object(
                    ["name", "action"],
                    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:-]*[A-Za-z0-9_])?$"},
                    action=_words(
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                        "RestartJob",
                        "RestartJobAndIgnoreMaxRestarts",
                    ),
                    onJobFailureReasons=_list(
                        _words(
                            "BackoffLimitExceeded",
                            "DeadlineExceeded",
                            "FailedIndexes",
                            "MaxFailedIndexesExceeded",
                            "PodFailurePolicy",
                        )
                    ),
                )
            ),
        ),
        replicatedJobs=_list(_object(["name", "template"], name=_TEXT, replicas=_COUNT, template=_ANYTHING)),
    ),
)
SCHEMAS = {"MPIJob": MPI_JOB, "JobSet": JOB_SET}


def inner(custom):
    """The Jobs and pods within an operator's object, as objects of Kubernetes' own."""
    if custom["kind"] == "JobSet":
        for each in custom["spec"]["replicatedJobs"]:
            yield {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": each["name"]}} | each["template"]
    else:
        for role, each in custom["spec"]["mpiReplicaSpecs"].items():
            template = {"metadata": {"name": role.lower()}, "template": each["template"]}
            yield {"apiVersion": "v1", "kind": "PodTemplate"} | template
