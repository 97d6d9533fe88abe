package tree

import (
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// Node is a whole subtree: 2^Level leaves from N·2^Level on.
type Node struct {
	Level int
	N     int64
}

// Index is where tlog keeps its hash.
func (n Node) Index() int64 { return tlog.StoredHashIndex(n.Level, n.N) }

// Nodes are the largest whole subtrees that make up the leaves [from, to): what an export must bring along for the parts
// that it leaves out. They are at most 2·log₂ to.
func Nodes(from, to int64) []Node {
	var nodes []Node
	for from < to {
		level := bits.Len64(uint64(to-from)) - 1 //nolint:gosec // positive
		if from > 0 {
			level = min(level, bits.TrailingZeros64(uint64(from)))
		}
		nodes = append(nodes, Node{level, from >> level})
		from += 1 << level
	}
	return nodes
}

// hasher comes to a tree's root from its leaves, one after the other, in memory that grows with the logarithm.
type hasher struct {
	size  int64
	whole []tlog.Hash // of the largest whole subtrees so far, from the left
}

// add takes the subtree that follows; level 0 is a leaf.
func (h *hasher) add(level int, hash tlog.Hash) {
	for n := h.size >> level; n&1 == 1; n >>= 1 {
		last := len(h.whole) - 1
		hash = tlog.NodeHash(h.whole[last], hash)
		h.whole = h.whole[:last]
	}
	h.whole = append(h.whole, hash)
	h.size += 1 << level
}

// root is that of all leaves so far, of which there is at least one.
func (h *hasher) root() tlog.Hash {
	last := len(h.whole) - 1
	root := h.whole[last]
	for i := last - 1; i >= 0; i-- {
		root = tlog.NodeHash(h.whole[i], root)
	}
	return root
}

func (h *hasher) clone() *hasher { return &hasher{h.size, append([]tlog.Hash(nil), h.whole...)} }
