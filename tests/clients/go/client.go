// Go's grpc, as Debian packages it, against a running agent: nothing but `unix:///path`.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	"bloomagent"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func expect(what string, got, want interface{}) {
	if got != want {
		log.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func getToken(ctx context.Context, tokens bloomagent.TokenServiceClient) {
	for _, name := range []string{"bloom", ""} {
		answer, err := tokens.GetToken(ctx, &bloomagent.GetTokenRequest{Name: name})
		check(err)
		expect("name", answer.Token.Name, "bloom")
		expect("token_type", answer.Token.TokenType, "Bearer")
		expect("has a token", answer.Token.AccessToken != "", true)
	}
}

func watchTokenOverARotation(ctx context.Context, tokens bloomagent.TokenServiceClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := tokens.WatchToken(ctx, &bloomagent.WatchTokenRequest{Name: "bloom"})
	check(err)
	first, err := stream.Recv()
	check(err)
	second, err := stream.Recv()
	check(err)
	expect("same generation", first.Token.Generation == second.Token.Generation, false)
	expect("same token", first.Token.AccessToken == second.Token.AccessToken, false)
	now, err := tokens.GetToken(ctx, &bloomagent.GetTokenRequest{Name: "bloom"})
	check(err)
	expect("GetToken has the newest", now.Token.Generation >= second.Token.Generation, true)
}

func anErrorsDetails(ctx context.Context, tokens bloomagent.TokenServiceClient) {
	_, err := tokens.GetToken(ctx, &bloomagent.GetTokenRequest{Name: "no-such-profile"})
	failed := status.Convert(err)
	expect("code", failed.Code(), codes.NotFound)
	for _, detail := range failed.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			expect("domain", info.Domain, "bloom.agent")
			expect("reason", info.Reason, "UNKNOWN_PROFILE")
			return
		}
	}
	log.Fatalf("no ErrorInfo in %v", failed.Details())
}

func health(ctx context.Context, connection *grpc.ClientConn) {
	client := healthpb.NewHealthClient(connection)
	for _, service := range []string{"", "bloom"} {
		answer, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		check(err)
		expect("health of "+service, answer.Status, healthpb.HealthCheckResponse_SERVING)
	}
	_, err := client.Check(ctx, &healthpb.HealthCheckRequest{Service: "no-such-profile"})
	expect("health of a stranger", status.Code(err), codes.NotFound)
}

func reflectionV1Alpha(ctx context.Context, connection *grpc.ClientConn) {
	stream, err := reflectionpb.NewServerReflectionClient(connection).ServerReflectionInfo(ctx)
	check(err)
	check(stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{},
	}))
	answer, err := stream.Recv()
	check(err)
	listed := map[string]bool{}
	for _, service := range answer.GetListServicesResponse().GetService() {
		listed[service.Name] = true
	}
	for _, name := range []string{"bloom.agent.v1.TokenService", "bloom.agent.v1.AdminService", "grpc.health.v1.Health"} {
		expect("lists "+name, listed[name], true)
	}
	check(stream.CloseSend())
}

func main() {
	// Many times the life of the tokens that the harness asks for: reached only when something hangs.
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	connection, err := grpc.DialContext(ctx, "unix://"+os.Getenv("BLOOM_AGENT_SOCK"), grpc.WithInsecure())
	check(err)
	defer connection.Close()
	tokens := bloomagent.NewTokenServiceClient(connection)
	for _, test := range []struct {
		name string
		run  func()
	}{
		{"GetToken", func() { getToken(ctx, tokens) }},
		{"WatchToken over a rotation", func() { watchTokenOverARotation(ctx, tokens) }},
		{"an error's details", func() { anErrorsDetails(ctx, tokens) }},
		{"health", func() { health(ctx, connection) }},
		{"reflection v1alpha", func() { reflectionV1Alpha(ctx, connection) }},
	} {
		test.run()
		fmt.Printf("  ok  %s\n", test.name)
	}
}
