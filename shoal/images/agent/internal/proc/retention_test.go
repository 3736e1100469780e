package proc

import (
	"fmt"
	"hash/maphash"
	"testing"
	"time"
)

func emptyTable() *Table {
	return &Table{procs: make(map[string]*Process), onChange: func(int) {}, seed: maphash.MakeSeed()}
}

func (t *Table) put(id string, run bool, output int) *Process {
	p := &Process{ID: id, table: t, run: run, Out: NewRing(-1, false), Err: NewRing(-1, false)}
	p.Out.Append(make([]byte, output))
	t.procs[id] = p
	t.retire(p)
	return p
}

func TestOnlySoManyOfTheEndedAreKept(t *testing.T) {
	table := emptyTable()
	for i := range maxEnded + 10 {
		table.put(fmt.Sprintf("p-%d", i), false, 0)
	}
	for i := range maxAnswers + 10 {
		table.put(fmt.Sprintf("p-r%d", i), true, 0)
	}
	if len(table.procs) != maxEnded+maxAnswers {
		t.Errorf("%d are kept", len(table.procs))
	}
	if table.procs["p-9"] != nil || table.procs["p-10"] == nil {
		t.Error("it was not the oldest that went")
	}
	for _, id := range []string{"p-9", "p-r9"} {
		if _, _, err := table.begin(&Spec{ID: id}, false); err == nil {
			t.Errorf("%s started again", id)
		}
	}
}

func TestUnreadOutputIsBoundedOnceItIsOld(t *testing.T) {
	table, began := emptyTable(), time.Now()
	var all []*Process
	for i := range 20 {
		all = append(all, table.put(fmt.Sprintf("p-%d", i), false, 1<<20))
	}
	unread := func() (total int64) {
		for _, p := range all {
			_, _, n := p.Out.Span()
			total += n
		}
		return total
	}
	if again := table.sweepAt(began.Add(unreadAge - time.Second)); !again || unread() != 20<<20 {
		t.Errorf("too early: %d", unread())
	}
	if again := table.sweepAt(time.Now().Add(unreadAge + time.Second)); again || unread() != maxUnread {
		t.Errorf("%d are kept", unread())
	}
	if _, _, newest := all[19].Out.Span(); newest == 0 {
		t.Error("it was not the oldest that went")
	}
}

func TestAnswersAreKeptForAWhile(t *testing.T) {
	table, began := emptyTable(), time.Now()
	table.put("p-a", true, answerSize)
	if large := table.put("p-b", true, answerSize+1); !large.gone {
		t.Error("a long answer is kept")
	}
	if table.sweepAt(began.Add(answerAge - time.Second)); len(table.procs) != 2 {
		t.Error("too early")
	}
	if again := table.sweepAt(time.Now().Add(answerAge + time.Second)); again || len(table.procs) != 0 {
		t.Errorf("%d are kept", len(table.procs))
	}
}

func TestGravesAreBounded(t *testing.T) {
	var k retention
	for i := range uint64(maxForgotten + 5) {
		k.remember(i)
	}
	if len(k.forgotten) != maxForgotten || k.seen(4) || !k.seen(5) || !k.seen(maxForgotten+4) {
		t.Errorf("%d forgotten", len(k.forgotten))
	}
}
