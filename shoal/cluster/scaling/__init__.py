"""Autoscaling over regions: Ray's autoscaler carries out, Shoal decides what Ray cannot.

Ray (v2) starts machines for what waits, and takes idle ones away. It never leaves a region that has no capacity, and
a machine with any actor on it is never idle. So Shoal decides where Ray may start machines (`max_workers` of each
node type, which Ray reads in each of its rounds) and which machine is emptied (cordon, empty, leave).

    what the operator writes          what runs
    spec.py      cluster.yaml         scaler.py        an actor on the head: observes, decides, carries out, each second
    reading.py   with line numbers      observing.py   what is there: from Ray, the controller and the fleet
                                        deciding.py    what is to be done (pure; packing.py, backoff.py, budget.py)
    machines                            planning.py    the plan as a person reads it
    contract.py  one region's cloud     ray_config.py  Ray's own configuration, written anew when it changes
    fleet.py     all regions as one     monitor.py     Ray's monitor process, which nothing else restarts
    aws.py, local.py                  ray_provider.py  what Ray's monitor calls: the fleet

    files.py     what these processes tell one another, in `<state_dir>/scaling`
    commands.py  `shoal cluster up`, `status`, `down`
"""
