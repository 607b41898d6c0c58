"""What a run costs and how well it uses the machine, by formula: from the configuration, never from modules on
a rank.
"""
