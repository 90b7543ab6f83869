"""Runs side by side: what differs in them, what came of it, and whether that can be told apart.

Place in the pipeline: behind training and evaluation. Reads what runs and exported folders keep (configuration, record,
metrics.csv) and loads no policy::

    folders --runs--> Run --groups--> Group (runs that differ in their seed alone)
                                        |--table--> `bczoo compare`: Markdown, JSON, CSV
                                        '--plot---> `bczoo plot`: curves
    `bczoo fit --seeds 3` (seeds) makes the runs of a group
"""
