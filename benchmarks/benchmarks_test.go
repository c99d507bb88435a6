package benchmarks

import (
	"os"
	"testing"
)

func BenchmarkRequest(b *testing.B)     { group(b, "Request", os.Getenv(PostgresEnv)) }
func BenchmarkTurns(b *testing.B)       { group(b, "Turns", os.Getenv(PostgresEnv)) }
func BenchmarkBudget(b *testing.B)      { group(b, "Budget", os.Getenv(PostgresEnv)) }
func BenchmarkProgram(b *testing.B)     { each(b, alone()) }
func BenchmarkOnce(b *testing.B)        { group(b, "Once", os.Getenv(PostgresEnv)) }
func BenchmarkServer(b *testing.B)      { group(b, "Server", os.Getenv(PostgresEnv)) }
func BenchmarkSlowClients(b *testing.B) { group(b, "SlowClients", os.Getenv(PostgresEnv)) }
func BenchmarkStream(b *testing.B)      { group(b, "Stream", os.Getenv(PostgresEnv)) }
func BenchmarkGrowth(b *testing.B)      { group(b, "Growth", os.Getenv(PostgresEnv)) }
