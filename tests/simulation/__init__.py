"""The real controller over pretend machines: `make simulate`.

__main__.py  takes both runs, prints their figures, draws them (build/simulation.json, build/simulation.png)
load.py      in real time: what a create, a list and a restart cost the controller with 10,000 sandboxes
day.py       in simulated time: a day of bursts, lost machines, a lost region, and scaling up and down
clock.py     simulated time: waiting takes none
fleet.py     pretend machines with pretend sandbox actors, behind the controller's own contracts
autoscaler.py  what Ray's autoscaler does for those that wait, and for idle machines
drawing.py   the PNG
"""
