"""The commands of the apps, and what several of them share: `lookup` finds rows, `progress` waits and shows bars."""
