#include "textflag.h"

// See shield.go.
TEXT shoal_agent_enter(SB), NOSPLIT|NOFRAME, $0
	MOVL $39, AX // getpid
	SYSCALL
	CMPL AX, $1
	JNE  program
	MOVL $108, AX // getegid
	SYSCALL
	LEAL 1(AX), DI
	MOVL AX, SI
	MOVL AX, DX
	MOVL $119, AX // setresgid
	SYSCALL

program:
	JMP _rt0_amd64_linux(SB)
