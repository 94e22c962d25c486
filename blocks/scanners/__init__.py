"""The scanners: one file a tool, each turning what its tool says into a ``ScannerReport``.

None of them decides anything; ``domain.findings.judge`` does. None of them trusts the scanned
source: a configuration file or a comment in it cannot mute a scanner, because what may stay is
said in the policy, with a reason and a last day.
"""
