"""Environments of a site: installed once, shared by all jobs that name them.

::

    <folder>/                       <spool>/environments, or what the site's configuration says
        <digest>                    symlink to the installation (the digest's first 20 digits)
        <digest>.lock               who is installing it at the moment
        names/<name>                symlink to a digest
        store/<digest>.<nonce>/     one attempt to install, at the place where it stays
            manifest.json
            info.json               what it is; its time of modification is that of its last use
            files/                  what was fetched; gone when it is installed
            env/                    the environment, read-only when it is installed
        trash/

An installation is made at its final place and becomes visible by the symlink, which is made when everything else is
done: atomic on every file system, and only one can be first. The lock merely saves work.
"""
